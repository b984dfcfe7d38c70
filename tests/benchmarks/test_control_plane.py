"""Measuring one cheap line for real, and what the entry answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import __main__
from benchmarks.control_plane import __main__ as plane
from benchmarks.control_plane import job_latency, testbed

ROOT = Path(__file__).parents[2]


def test_a_line_is_measured_and_nothing_is_left() -> None:
    with testbed.running() as running:
        data_dir = running.settings.data_dir
        lines = job_latency.stops(running, count=2)
        assert {name for name, _ in running.parts()} >= {"up", "api", "worker", "ly-launcher"}
        pids = [one.pid for one in running.processes()]
    assert [line.name for line in lines] == [
        "stop → every process gone and closed, p50",
        "stop → every process gone and closed, p99",
    ]
    assert all(line.ours is not None and line.ours > 0 for line in lines)
    assert not data_dir.parent.exists()
    assert len(pids) >= 5
    assert all(testbed.is_gone(pid) for pid in pids)


def test_a_job_that_did_not_do_its_work_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    with testbed.running() as running, running.connection() as http:
        monkeypatch.setattr(job_latency, "LINE", "another line")
        with pytest.raises(RuntimeError, match="its log is"):
            job_latency._one(running, http)


def test_a_failed_measurement_is_a_line_without_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[plane.Line] = []

    def breaks() -> list[plane.Line]:
        raise RuntimeError("no rows")

    assert plane._take("posts", breaks, lines) is False
    assert (lines[0].ours, lines[0].met) == (None, None)
    assert "no rows" in lines[0].why
    assert "no rows" in capsys.readouterr().err


def test_the_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([]) == 0
    assert "bench NAME" in capsys.readouterr().out
    assert __main__.main(["fleet"]) == 2
    assert "no bench 'fleet'" in capsys.readouterr().err


def test_the_command_writes_its_lines(tmp_path: Path) -> None:
    """As a person starts it, on one measurement that is done at once."""
    file = tmp_path / "lines.json"
    argv = [sys.executable, "-P", "-m", "benchmarks", "plane", "--quick", "--only", "idle", "--json", str(file)]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(file.read_text())
    assert (line["name"], line["unit"], line["target"]) == ("idle memory of the whole plane, PSS", "MiB", 250)
    assert 50 < line["ours"] < 2000
    assert "The control plane" in done.stdout
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
