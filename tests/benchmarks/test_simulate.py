"""A small fleet replayed for real: every job runs once, no device twice, and what was told is held against what came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulate import __main__ as simulate
from benchmarks.simulate import first_fit as firstfit
from benchmarks.simulate import metrics, simulator, traces
from benchmarks.simulate.simulator import Outcome, Run
from benchmarks.simulate.traces import BadTrace, TraceJob
from store.placement import planner


@pytest.fixture(scope="module")
def trace() -> list[TraceJob]:
    return traces.synthetic(250, num_devices=32, load=1.1, seed=7)


@pytest.fixture(scope="module")
def ours(trace: list[TraceJob]) -> Outcome:
    return simulator.replay(trace, simulator.fleet(4), planner.plan, every_s=20.0)


def test_every_job_runs_once_and_no_device_twice(trace: list[TraceJob], ours: Outcome) -> None:
    assert metrics.check(trace, ours) == []
    by_job = {job.id: [run for run in ours.runs if run.job_id == job.id] for job in trace}
    for job in trace:
        ran_s = sum(run.end_s - run.start_s for run in by_job[job.id])
        repeated_s = simulator.LOST_S * (len(by_job[job.id]) - 1)
        assert ran_s == pytest.approx(min(job.duration_s, job.limit_s or job.duration_s) + repeated_s)
        if len(by_job[job.id]) > 1:
            assert job.priority < 0, "only the low ones are stopped"
    first_fit = simulator.replay(trace, simulator.fleet(4), firstfit.plan, every_s=20.0)
    assert metrics.check(trace, first_fit) == []
    assert first_fit.told == {}


def test_the_figures_are_of_the_replay(trace: list[TraceJob], ours: Outcome) -> None:
    found = metrics.read_out(trace, ours, num_devices=32)
    assert 0.3 < found.utilisation < 1.0
    assert sum(one.num_jobs for one in found.by_size.values()) == len(trace)
    assert found.num_passes == len(ours.passes_s) > 100
    assert found.estimates is not None
    assert found.estimates.num_promised > 10
    assert 0 < found.jain_slowdown <= 1
    assert found.modest_slowdown is not None
    assert found.greedy_slowdown is not None
    assert found.modest_slowdown < found.mean_slowdown < found.greedy_slowdown, "that is what fair shares are for"
    assert 0 < found.pass_long_s <= found.pass_max_s


def test_exact_estimates_and_one_priority_make_no_promise_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each job's limit is what it takes, and nothing is guessed from what such jobs took."""
    monkeypatch.setattr(simulator._Replay, "_typical_s", lambda *_: None)  # pyright: ignore[reportPrivateUsage]
    made_up = traces.synthetic(
        200, num_devices=16, load=1.2, seed=3, mix=traces.Mix(error_spread=0.0, high=0.0, low=0.0)
    )
    known = [_with(job, limit_s=job.duration_s) for job in made_up]
    outcome = simulator.replay(known, simulator.fleet(2), planner.plan, every_s=0.0)
    starts = {run.job_id: run.start_s for run in reversed(outcome.runs)}
    assert len(outcome.promised) > 10
    assert [job_id for job_id, told in outcome.promised.items() if starts[job_id] > told.start_s + 1e-3] == []


def test_an_unsound_replay_is_seen() -> None:
    trace = [TraceJob("a", 0, "ada", 1, 10), TraceJob("b", 5, "ada", 2, 10)]
    runs = [Run("a", "h", (0,), 0, 10, is_last=True), Run("b", "h", (0, 1), 5, 15, is_last=True)]
    assert metrics.check(trace, Outcome(runs=runs)) == ["a and b held ('h', 0) at once"]
    assert metrics.check(trace, Outcome(runs=runs[:1])) == ["2 jobs were submitted and 1 ended"]
    early = [Run("a", "h", (0,), 0, 10, is_last=True), Run("b", "h", (1,), 4, 15, is_last=True)]
    assert metrics.check(trace, Outcome(runs=early)) == ["b ran on 1 devices", "b ran before it was submitted"]


def test_the_same_seed_is_the_same_trace_and_the_load_is_what_was_asked() -> None:
    once, again, other = (traces.synthetic(3000, num_devices=64, load=0.8, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    asked = sum(job.devices * job.duration_s for job in once)
    assert asked / (64 * once[-1].submitted_s) == pytest.approx(0.8, rel=0.15)
    assert [job.submitted_s for job in once] == sorted(job.submitted_s for job in once)


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl"])
def test_a_trace_is_read_as_it_was_written(tmp_path: Path, trace: list[TraceJob], name: str) -> None:
    traces.write(trace, tmp_path / name)
    assert traces.read(tmp_path / name) == trace


def test_a_trace_needs_four_columns_and_tells_what_is_wrong_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "real.csv"
    file.write_text("owner,devices,duration_s,submitted_s\nbob,8,60,5\nada,1,30.5,0\n")
    assert traces.read(file) == [TraceJob("0000003", 0, "ada", 1, 30.5), TraceJob("0000002", 5, "bob", 8, 60)]
    for line, words in (
        ("bob,9,60,5", "real.csv:2: devices is 9"),
        ("bob,x,60,5", "real.csv:2: invalid literal"),
        ("bob,1,-1,5", "real.csv:2: duration_s is -1.0"),
        ("bob,1,,5", "real.csv:2: duration_s is missing"),
        ("bob,1", "line 2: as many values"),
    ):
        file.write_text(f"owner,devices,duration_s,submitted_s\n{line}\n")
        with pytest.raises(BadTrace, match=words):
            traces.read(file)
    lines = tmp_path / "real.jsonl"
    lines.write_text('{"owner": "ada", "devices": 1, "duration_s": 1, "submitted_s": 0, "gpu": 1}\n')
    with pytest.raises(BadTrace, match="unknown gpu"):
        traces.read(lines)
    lines.write_text("{\n")
    with pytest.raises(BadTrace, match="line 1: no JSON"):
        traces.read(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": 2.7}, "2.7 is no whole number"),
        ({"devices": True}, "True is no whole number"),
        ({"priority": float("inf")}, "cannot convert float infinity"),
        ({"submitted_s": 1e300}, "submitted_s is 1e"),
        ({"duration_s": 1e300}, "duration_s is 1e"),
        ({"duration_s": float("nan")}, "duration_s is nan"),
    ],
)
def test_a_number_that_none_of_ours_can_be_is_refused_and_not_rounded(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    """A submission in 1e300 s never ended: a job's length is lost when it is added to that."""
    file = tmp_path / "real.jsonl"
    file.write_text(json.dumps({"owner": "ada", "devices": 1, "duration_s": 1, "submitted_s": 0} | change))
    with pytest.raises(BadTrace, match=f"real.jsonl:1: {words}"):
        traces.read(file)


def test_a_file_that_is_no_text_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "real.csv"
    file.write_bytes(b"\xff\xfe\0")
    assert simulate.main(["--trace", str(file)]) == 2
    assert capsys.readouterr().err == "real.csv: not UTF-8 at byte 0\n"


@pytest.mark.parametrize(
    "options",
    ["--load 0", "--load -1", "--load nan", "--every -5", "--every nan", "--seed -1"]
    + [f"--{name} /nonexistent/{name}.svg" for name in ("json", "picture", "write-trace")]
    + ["--picture chart.png"],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_replayed(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        simulate.main(["--hosts", "1", "--jobs", "5", *options.split()])
    assert caught.value.code == 2
    assert f"error: argument {options.split()[0]}" in capsys.readouterr().err


def test_a_job_that_nothing_will_ever_start_ends_the_replay() -> None:
    with pytest.raises(simulator.Stuck, match="1 jobs wait for ever, such as a of ada, which wants 4"):
        simulator.replay(
            [TraceJob("a", 0, "ada", 4, 10)], simulator.fleet(1), planner.plan, every_s=1.0, quotas={"*": 2}
        )


def test_jain() -> None:
    assert metrics.jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert metrics.jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_the_command_prints_both_and_keeps_what_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, picture, kept = tmp_path / "report.json", tmp_path / "chart.svg", tmp_path / "kept.csv"
    asked = ["--hosts", "2", "--jobs", "60", "--seed", "5", "--json", str(report), "--picture", str(picture)]
    assert simulate.main([*asked, "--write-trace", str(kept)]) == 0
    printed = capsys.readouterr().out
    assert "60 jobs of" in printed
    assert "seed 5" in printed
    assert "first fit" in printed
    told = json.loads(report.read_text())
    assert set(told["planners"]) == {"ours", "first fit"}
    assert told["planners"]["ours"]["waits"]["num_jobs"] == 60
    assert picture.read_text().lstrip().startswith("<?xml")
    assert simulate.main(["--hosts", "2", "--trace", str(kept), "--only", "ours", "--json", str(report)]) == 0
    again = json.loads(report.read_text())["planners"]["ours"]
    same = [key for key in again if not key.startswith("pass_")]
    assert {key: again[key] for key in same} == {key: told["planners"]["ours"][key] for key in same}


def test_whole_passes_are_timed_on_a_real_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--hosts", "2", "--jobs", "20", "--whole-passes", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "20 jobs" in head
    assert len(lines) == 2
    assert all("s of CPU" in line for line in lines)


def test_what_is_no_trace_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--trace", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        simulate.main(["--help"])
    assert caught.value.code == 0


def test_durations_in_words() -> None:
    assert [simulate.duration(one) for one in (0.0, 42.4, 119, 120, 3600 * 3.5, 86_400 * 2)] == [
        "0 s", "42 s", "119 s", "2 min", "3.5 h", "2 d",
    ]  # fmt: skip


def _with(job: TraceJob, *, limit_s: float) -> TraceJob:
    return TraceJob(job.id, job.submitted_s, job.owner, job.devices, job.duration_s, 1.0, 0, limit_s)
