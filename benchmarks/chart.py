"""Owns a bench's picture: how far each figure is past its target, or short of it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Line, number

MET, MISSED, INK, FAINT = "#2f7d5b", "#c2493d", "#1c2730", "#6b7780"
_INCHES_A_LINE: Final = 0.36


def draw(lines: Sequence[Line], path: Path, *, title: str, facts: Mapping[str, str]) -> None:
    """Writes the lines that have a target as horizontal bars; the suffix of the path says the format.

    Raises RuntimeError where matplotlib is not installed.
    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "a picture needs matplotlib, which the development extra brings: ./run test installs it"
        ) from error
    shown = [line for line in lines if reached(line) is not None]
    matplotlib.use("agg")
    # Words stay words, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "longyard", "font.family": "sans-serif"})
    figure, axes = pyplot.subplots(figsize=(11, 1.6 + _INCHES_A_LINE * len(shown)), layout="constrained")
    _bars(axes, shown)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)
    caption = "\n".join(f"{name}: {value}" for name, value in facts.items())
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=FAINT)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def reached(line: Line) -> float | None:
    """How often the figure holds its target: 1 meets it exactly, 2 is twice as good."""
    if line.ours is None or line.target is None or line.ours <= 0 or line.target <= 0:
        return None
    return line.target / line.ours if line.better == "lower" else line.ours / line.target


def _bars(axes: Any, lines: Sequence[Line]) -> None:
    scores = [reached(line) or 1.0 for line in lines]
    places = list(range(len(lines)))
    colours = [MET if line.met else MISSED for line in lines]
    # Bars begin at the target: right of it is what was gained beyond, left of it what is missing.
    axes.barh(places, [score - 1 for score in scores], left=1, color=colours, height=0.62)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log", base=2)
    low, high = min(0.5, *scores), max(2.0, *scores)
    axes.set_xlim(low / 1.15, high * 3.2)
    ticks = [2.0**n for n in range(-6, 12) if low / 1.2 <= 2.0**n <= high * 1.2]
    axes.set_xticks(ticks, ["target" if tick == 1 else f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [line.name for line in lines], fontsize=9, color=INK)
    axes.invert_yaxis()
    for place, score, line in zip(places, scores, lines, strict=True):
        axes.text(max(score, 1) * 1.06, place, _told(line), va="center", fontsize=8.5, color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, colors=FAINT)


def _told(line: Line) -> str:
    assert line.ours is not None
    ours = f"{number(line.ours)} {line.unit}"
    if line.ratio is None or line.baseline is None:
        return f"{ours}, target {number(line.target or 0)}"
    return f"{ours}, baseline {number(line.baseline)}: {line.ratio:.2g}×"
