"""Owns how acts are timed against each other: turn by turn, each by its median, the range of both sides shown."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report import Line, median, number

Act = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured: a model of so many layers, `long` tokens, so many turns for steps and for what is cheap."""

    layers: int
    long: int
    turns: int
    cheap_turns: int


def interleave(turns: int, acts: Mapping[str, Act]) -> dict[str, list[float]]:
    """Seconds of every turn of every act. They take turns, so that what disturbs the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(turns):
        for name, act in acts.items():
            # What one act left behind is not collected on another's time.
            gc.collect()
            began = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - began)
    return times


def won(name: str, ours: Sequence[float], baseline: Sequence[float], *, wanted: float, note: str) -> Line:
    """A line of how much faster than the baseline; `wanted` is the ratio to reach, below 1 for a price to keep to."""
    # Turns of microseconds are shown in their own unit.
    scale, unit = (1e6, "µs") if median(ours) < 1e-3 else (1.0, "s")
    ours, baseline = ([scale * s for s in side] for side in (ours, baseline))
    return Line(
        name,
        median(ours),
        unit,
        target=median(baseline) / wanted,
        baseline=median(baseline),
        spread=f"{span(ours)}; baseline {span(baseline)}; n={len(ours)}",
        note=note,
    )


def span(values: Sequence[float]) -> str:
    return f"{number(min(values))} … {number(max(values))}"
