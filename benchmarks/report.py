"""Owns a bench's lines and the two ways they are shown: a table for people, an array of objects for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Line:
    """One measured figure. `ours` is None where it could not be measured, and then `why` says so.

    `baseline` of the same run makes a `ratio`; one that was published, or measured on another run, is shown as `source` names it and
    makes none. `spread` and `note` are for people: the range of what was measured, and how the work was proven.
    """

    name: str
    ours: float | None
    unit: str
    target: float | None = None
    better: Better = "lower"
    baseline: float | None = None
    source: str = ""
    spread: str = ""
    note: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.ours is None and not self.why:
            raise ValueError(f"{self.name}: a line without a figure says why")

    @property
    def ratio(self) -> float | None:
        """Baseline over ours where lower is better, ours over baseline otherwise: above 1 is a gain. Only within one run."""
        if self.ours is None or self.baseline is None or self.source or not self.ours or not self.baseline:
            return None
        return self.baseline / self.ours if self.better == "lower" else self.ours / self.baseline

    @property
    def met(self) -> bool | None:
        if self.ours is None or self.target is None:
            return None
        return self.ours <= self.target if self.better == "lower" else self.ours >= self.target


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed: with few values, p99 is the greatest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def spread(values: Sequence[float]) -> str:
    """`least … greatest, n`."""
    return f"{number(min(values))} … {number(max(values))}, n={len(values)}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def show(lines: Sequence[Line], *, title: str, facts: Mapping[str, str], console: Console | None = None) -> None:
    """Print the table, under what it was measured on."""
    console = console or Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"[bold]{title}[/bold]")
    for name, value in (machine() | dict(facts)).items():
        console.print(f"  {name}: {value}", highlight=False)
    table = Table("line", "ours", "spread", "target", "met", "baseline", "ratio", pad_edge=False)
    for line in lines:
        table.add_row(
            line.name,
            "–" if line.ours is None else f"{number(line.ours)} {line.unit}",
            line.spread,
            "" if line.target is None else f"{'≤' if line.better == 'lower' else '≥'} {number(line.target)}",
            {True: "yes", False: "[red]no[/red]", None: "–"}[line.met],
            _baseline(line),
            "" if line.ratio is None else f"{line.ratio:.1f}×",
        )
    console.print(table)
    for line in lines:
        if line.why or line.note:
            console.print(f"  {line.name}: {line.why or line.note}", highlight=False)


def write_json(lines: Sequence[Line], path: Path) -> None:
    path.write_text(json.dumps([as_json(line) for line in lines], indent=1, ensure_ascii=False) + "\n", "utf-8")


def as_json(line: Line) -> dict[str, Any]:
    """`why` only where there is nothing to say whether the target was met."""
    why = line.why or ("no target" if line.met is None else "")
    return {
        "name": line.name,
        "ours": line.ours,
        "baseline": line.baseline,
        "ratio": line.ratio,
        "unit": line.unit,
        "target": line.target,
        "met": line.met,
        **({"why": why} if why else {}),
    }


def machine() -> dict[str, str]:
    """What the figures depend on besides the code. The load tells whether the machine had other work when it began."""
    return {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {_processor()}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "load average": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def number(value: float) -> str:
    """Three significant digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _baseline(line: Line) -> str:
    if line.baseline is None:
        return ""
    return f"{number(line.baseline)} ({line.source})" if line.source else number(line.baseline)


def _processor() -> str:
    for row in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if row.startswith("model name"):
            return row.partition(":")[2].strip()
    return "unknown processor"
