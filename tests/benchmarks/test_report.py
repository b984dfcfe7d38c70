"""What a bench's lines say, on the terminal and in the file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.report import Line

KEYS = ["name", "ours", "baseline", "ratio", "unit", "target", "met"]


def test_a_line_against_a_baseline_of_the_same_run() -> None:
    line = Line("step", 2.0, "s", 3.0, baseline=8.0)
    assert report.as_json(line) == {
        "name": "step", "ours": 2.0, "baseline": 8.0, "ratio": 4.0, "unit": "s", "target": 3.0, "met": True,
    }  # fmt: skip


def test_higher_may_be_better() -> None:
    line = Line("rate", 400.0, "/s", 500.0, "higher", 100.0)
    assert (line.ratio, line.met) == (4.0, False)
    assert Line("rate", 500.0, "/s", 500.0, "higher").met is True


def test_a_figure_of_another_run_makes_no_ratio() -> None:
    described = report.as_json(Line("list", 8.0, "ms", 15.0, baseline=61.0, source="Ray, other run"))
    assert (described["baseline"], described["ratio"], described["met"]) == (61.0, None, True)


def test_what_is_not_judged_says_why() -> None:
    described = report.as_json(Line("chart", None, "ms", 100.0, why="no such chart"))
    assert list(described) == [*KEYS, "why"]
    assert (described["ours"], described["met"], described["why"]) == (None, None, "no such chart")
    assert report.as_json(Line("extra", 1.0, "ms"))["why"] == "no target"
    with pytest.raises(ValueError, match="says why"):
        Line("chart", None, "ms")


def test_quantiles() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert report.quantile(hundred, 0.5) == 50.0
    assert report.quantile(hundred, 0.99) == 99.0
    assert report.quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert report.quantile([7.0], 0.01) == 7.0


def test_the_table_and_the_file(tmp_path: Path) -> None:
    lines = [
        Line("list", 8.25, "ms", 15.0, baseline=61.0, source="Ray, other run", spread="7 … 9, n=5", note="50 jobs"),
        Line("stop", 93.0, "ms", 50.0),
        Line("chart", None, "ms", 100.0, why="not here"),
    ]
    shown = io.StringIO()
    report.show(lines, title="A bench", facts={"versions": "x 1"}, console=Console(file=shown, width=140))
    for words in (
        "A bench",
        "machine",
        "x 1",
        "8.25 ms",
        "7 … 9, n=5",
        "≤ 15",
        "yes",
        "no",
        "61 (Ray, other run)",
        "not here",
    ):
        assert words in shown.getvalue()
    report.write_json(lines, tmp_path / "bench.json")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [list(one)[:7] for one in written] == [KEYS] * 3
    assert [one["met"] for one in written] == [True, False, None]
