"""Floods: of log bytes (F28), of metrics (F29), of jobs (F32). Figures are of memory and CPU time, which other work does not disturb."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import psutil
import pytest
from sqlalchemy import func, select

from store import jobs
from store.jobs import NewJob, Submission
from store.models import LogChunk, MetricPoint
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.conftest import IS_FULL, calm
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings
from worker.agent.scheduling import Planner

MIB = 1 << 20
NUM_QUEUED = 10_000
POSTED = 20


@pytest.mark.parametrize(
    ("pattern", "share"),
    [
        ("6c696e65206f6620746865206c6f672c206f6620666f72747920627974657321210a", 1.0),
        ("79", 0.5),
        ("", 0.25),
        ("00", 0.25),
    ],
    ids=["lines", "no newline", "random bytes", "NULs"],
)
def test_f28_a_flood_of_log_bytes(
    plane: Plane, gate: Path, count: Callable[[int, int], int], pattern: str, share: float
) -> None:
    """Everything arrives, in pieces, and the supervisor holds little of it at a time."""
    num_bytes = int(share * count(1000 * MIB, 32 * MIB))
    pour = {"do": "pour", "pattern": pattern, "num_bytes": num_bytes}
    job_id = plane.submit([pour, *lesson(hold_at=20, gate=gate)])
    plane.until(lambda: _committed(plane, job_id) >= num_bytes, "all of it is committed", stated_s=2400)
    peak = _peak_mib(injections.supervisor_of(plane, job_id))
    gate.touch()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"
    assert peak < 200
    assert IS_FULL or peak < _peak_mib(injections.launcher_of(plane)) + 48


@pytest.mark.skipif(not IS_FULL, reason="a figure of time, for a quiet machine: ./run faults --all")
def test_f28_what_the_reading_of_a_flood_costs_training(plane: Plane) -> None:
    """Against the same work while the supervisor stands still and reads nothing; in turn, because machines drift."""
    taken_s: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for is_read in (True, False):
            taken_s[is_read].append(_grind(plane, is_read=is_read))
    assert median(taken_s[True]) < 1.02 * median(taken_s[False]), taken_s


def test_f29_many_points_at_once(plane: Plane, count: Callable[[int, int], int]) -> None:
    steps = count(10_000, 200)
    job_id = plane.submit([{"do": "flood", "first": 1, "last": steps, "num_names": 100}, {"do": "succeed"}])
    assert programs.until_ended(plane, job_id, stated_s=2400)["status"] == "succeeded"
    assert _points(plane, job_id) == (100, 100 * steps)
    assert "metrics_dropped" not in plane.client.kinds(job_id)


def test_f29_twenty_thousand_names(plane: Plane) -> None:
    """The first thousand are kept whole, and that there were more is told."""
    job_id = plane.submit([{"do": "flood", "first": 1, "last": 3, "num_names": 20_000}, {"do": "succeed"}])
    assert programs.until_ended(plane, job_id, stated_s=1200)["status"] == "succeeded"
    assert _points(plane, job_id) == (1000, 3000)
    assert plane.client.kinds(job_id).count("metrics_dropped") == 1


@pytest.fixture
def long_queue(tmp_path: Path, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """A plane that looks by itself only as often as by default, all its devices held, almost as many jobs queued as may be."""
    variables = {**calm(timings), "LONGYARD_HOST_LOOP_S": "5"}
    with planes.running(
        tmp_path / "plane", timings, devices={"a": 1}, template=sqlite_template, variables=variables
    ) as plane:
        holding = plane.submit([{"do": "wait_for_stop"}])
        programs.until_attempt(plane, holding, 1)
        spec = NewJob("queued", "demo", {}, 1, planes.DEVICE_TYPE)
        left = NUM_QUEUED - POSTED
        while left > 0:
            with plane.database.write() as session:
                jobs.submit_together(session, [Submission(spec, "admin")] * min(left, 500))
            left -= 500
        yield plane


def test_f32_ten_thousand_queued_jobs(long_queue: Plane) -> None:
    plane = long_queue
    api = psutil.Process(plane.api.pid)
    walls: dict[str, list[float]] = {"submit": [], "list": []}
    began = _cpu_s(api)
    for _ in range(POSTED):
        walls["submit"].append(_timed(lambda: plane.submit(lesson(1))))
        walls["list"].append(_timed(lambda: plane.client.get("/jobs?status=queued")))
    assert (_cpu_s(api) - began) / (2 * POSTED) < 0.3, "CPU seconds a request"
    answer = plane.client.once("POST", "/jobs", json=plane.spec(lesson(1)))
    assert answer.status_code == 429, "one more than may be queued"
    planner = Planner(plane.database)
    planner.run()
    began = time.process_time()
    planner.run()
    assert time.process_time() - began < 1.0, "CPU seconds a pass"
    if IS_FULL:
        assert max(walls["submit"]) < 0.3
        assert max(walls["list"]) < 0.3


def _grind(plane: Plane, *, is_read: bool) -> float:
    """Seconds, by the rank's own clock, for work that says 8 MiB a second or so."""
    gate = plane.root / f"gate-{time.monotonic()}"
    grind = {"do": "grind", "steps": 500, "bytes_a_step": 1 << 16}
    job_id = plane.submit([{"do": "wait_for", "path": str(gate)}, grind, {"do": "succeed"}])
    plane.until(lambda: injections.ranks_of(plane, job_id), "its rank runs", stated_s=30)
    path = plane.run_dir(job_id) / "r0.log"
    with nullcontext() if is_read else injections.frozen(injections.supervisor_of(plane, job_id)):
        gate.touch()
        plane.until(lambda: b"ground for" in path.read_bytes()[-100:], "it has done its work", stated_s=60)
    programs.until_ended(plane, job_id)
    found = re.search(rb"ground for (\S+) s", path.read_bytes()[-100:])
    assert found is not None
    return float(found[1])


def _committed(plane: Plane, job_id: str) -> int:
    with plane.database.read() as session:
        return session.scalar(select(func.sum(LogChunk.num_bytes)).where(LogChunk.job_id == job_id)) or 0


def _points(plane: Plane, job_id: str) -> tuple[int, int]:
    """How many names of a flood, and how many points of them."""
    query = select(func.count(MetricPoint.name.distinct()), func.count())
    with plane.database.read() as session:
        names, points = session.execute(
            query.where(MetricPoint.job_id == job_id, MetricPoint.name.startswith("name-"))
        ).one()
    return names, points


def _peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began
