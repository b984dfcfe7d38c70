"""Draws a comparison: who waits how long, how the devices were used, and whether what was told came true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.simulate.metrics import Figures
from benchmarks.simulate.simulator import Outcome
from benchmarks.simulate.traces import TraceJob

COLOURS: Final = ("#2f6fde", "#c0762b")
MINUTE_S, HOUR_S = 60.0, 3600.0
MOST_DOTS: Final = 600
STYLE: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "longyard",  # ids of the drawing, which are random otherwise
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def draw(
    trace: Sequence[TraceJob], outcomes: Mapping[str, Outcome], found: Mapping[str, Figures], path: Path, *, title: str
) -> None:
    """Into a file of the kind that its ending says. The same figures give the same SVG."""
    with mpl.rc_context(dict(STYLE)):  # pyright: ignore[reportArgumentType]  # its keys are literals there
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        figure.suptitle(title)
        (waits, use), (owners, told) = figure.subplots(2, 2)
        _draw_waits(waits, found)
        _draw_use(use, trace, outcomes)
        _draw_owners(owners, found)
        _draw_told(told, outcomes)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=150, facecolor="white")


def _draw_waits(axes: Any, found: Mapping[str, Figures]) -> None:
    axes.set_title("How long jobs wait, by size: median and 95th percentile")
    sizes = sorted(next(iter(found.values())).by_size)
    width = 0.8 / len(found)
    for number, (name, one) in enumerate(found.items()):
        at = np.arange(len(sizes)) + (number - (len(found) - 1) / 2) * width
        medians = np.array([max(one.by_size[size].median_s, 1.0) for size in sizes])
        tails = np.array([max(one.by_size[size].p95_s, 1.0) for size in sizes])
        axes.bar(at, tails, width * 0.9, color=COLOURS[number], alpha=0.35)
        axes.bar(at, medians, width * 0.9, color=COLOURS[number], label=name)
    axes.set_xticks(range(len(sizes)), [f"{size} device{'s' if size > 1 else ''}" for size in sizes])
    _times(axes.yaxis, axes.set_yscale)
    axes.legend(frameon=False)


def _draw_use(axes: Any, trace: Sequence[TraceJob], outcomes: Mapping[str, Outcome]) -> None:
    axes.set_title("Devices in use")
    last_s = max(job.submitted_s for job in trace)
    end_s = max(run.end_s for one in outcomes.values() for run in one.runs)
    edges = np.linspace(0.0, end_s, 241)
    for number, (name, one) in enumerate(outcomes.items()):
        at = np.array([moment for moment, _ in one.held])
        held = np.array([count for _, count in one.held], dtype=float)
        # The mean over each stretch: the area below the steps, taken at the edges.
        area = np.concatenate([[0.0], np.cumsum(held[:-1] * np.diff(at))])
        used = np.interp(edges, at, area)
        axes.plot(edges[1:] / HOUR_S, np.diff(used) / np.diff(edges), color=COLOURS[number], lw=1.2, label=name)
    axes.axvline(last_s / HOUR_S, color="#888", lw=0.8, ls=":")
    axes.annotate(
        "last submission",
        (last_s / HOUR_S, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -9),
        textcoords="offset points",
        color="#666",
    )
    axes.set_xlabel("hours")
    axes.set_ylim(bottom=0)


def _draw_owners(axes: Any, found: Mapping[str, Figures]) -> None:
    axes.set_title("Owners, from the one who submits most: 95th percentile of waits")
    first = next(iter(found.values()))
    owners = sorted(first.by_owner, key=lambda owner: (-first.by_owner[owner].num_jobs, owner))[:20]
    for number, (name, one) in enumerate(found.items()):
        waits = [max(one.by_owner[owner].p95_s, 1.0) for owner in owners]
        axes.plot(range(1, len(owners) + 1), waits, "o-", ms=4, lw=1, color=COLOURS[number], label=name)
    _times(axes.yaxis, axes.set_yscale)
    axes.set_xlabel("owner")
    axes.set_xticks(range(1, len(owners) + 1))


def _draw_told(axes: Any, outcomes: Mapping[str, Outcome]) -> None:
    axes.set_title("Told to wait, waited: the first estimate of each job")
    one = next(iter(outcomes.values()))
    starts: dict[str, float] = {}
    for run in one.runs:
        starts[run.job_id] = min(starts.get(run.job_id, np.inf), run.start_s)
    dots = [
        (max(told.start_s - told.at_s, 1.0), max(starts[job_id] - told.at_s, 1.0)) for job_id, told in one.told.items()
    ]
    dots = dots[:: -(-len(dots) // MOST_DOTS) or 1]
    if dots:
        axes.plot(*zip(*dots, strict=True), ".", ms=3, alpha=0.35, color=COLOURS[0], rasterized=len(dots) > MOST_DOTS)
    limits = np.array([10.0, 3 * 86_400.0])
    axes.plot(limits, limits, color="#444", lw=0.8)
    axes.fill_between(limits, limits / 2, limits * 2, color="#444", alpha=0.08, lw=0)
    _times(axes.xaxis, axes.set_xscale)
    _times(axes.yaxis, axes.set_yscale)
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xlabel("told (the band: within a factor of 2)")


def _times(axis: Any, set_scale: Any) -> None:
    set_scale("log")
    ticks = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h", 259_200: "3 d"}
    axis.set_ticks(list(ticks), list(ticks.values()))
    axis.set_ticks([], minor=True)
