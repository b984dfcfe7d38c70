"""Leases that end: of a supervisor or a whole host that stands still (F12), of what was placed and never launched (F13)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from store.models import Attempt, Lease, LogChunk
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.plane import Plane, Timings
from tests.faults.programs import lesson
from tests.worker.processes import is_running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """Hosts a with two devices and b with four, so that a job's size says where it runs; leases at their stated length."""
    root = tmp_path_factory.mktemp("plane")
    with planes.running(root, timings, devices={"a": 2, "b": 4}, template=sqlite_template) as plane:
        yield plane


@pytest.mark.parametrize("judge", ["its own host", "another host"])
def test_f12_a_supervisor_that_stood_still_past_its_lease(plane: Plane, gate: Path, judge: str) -> None:
    """Whoever judges, its own host ends it and its ranks before the job runs again anywhere (K3)."""
    sweeper = _sweeper(plane)
    is_on_b = (sweeper == "b") == (judge == "its own host")
    job_id = plane.submit(lesson(hold_at=30, gate=gate), num_devices=3 if is_on_b else 1)
    programs.until_saved(plane, job_id)
    supervisor, ranks = injections.supervisor_of(plane, job_id), injections.ranks_of(plane, job_id)
    with injections.frozen(supervisor, between_writes_of=plane):
        closed = programs.until_closed(plane, job_id, stated_s=150)
        plane.until(lambda: not any(map(is_running, [supervisor, *ranks.values()])), "it is ended", stated_s=10)
    assert closed["exit_reason"] in ("infra", "lease_expired")
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 2)


def test_f12_a_host_that_stood_still_past_its_lease_writes_nothing_more(plane: Plane, gate: Path) -> None:
    """All of host a stops; b takes the job over and finishes it; a goes on, and finds itself too late."""
    job_id = plane.submit(lesson(hold_at=30, gate=gate))
    programs.until_saved(plane, job_id)
    assert plane.client.job(job_id)["attempt"]["host"] == "a"
    supervisor, (rank,) = injections.supervisor_of(plane, job_id), injections.ranks_of(plane, job_id).values()
    with injections.frozen(plane.worker("a").pid, supervisor, between_writes_of=plane):
        # A frozen rank would keep its locks, and be a second holder to the kernel of this one machine.
        os.kill(rank, signal.SIGKILL)
        programs.until_closed(plane, job_id, stated_s=200)
        gate.touch()
        assert programs.until_ended(plane, job_id)["attempt"]["host"] == "b"
        before = _rows(plane, job_id)
        with open(plane.run_dir(job_id) / "r0.log", "ab") as file:
            file.write(b"too late\n")
    plane.until(lambda: not is_running(supervisor), "the late supervisor has left", stated_s=30)
    assert _rows(plane, job_id) == before
    assert "too late" not in plane.client.log(job_id, attempt=1)


def test_f13_a_host_that_dies_before_it_launches(plane: Plane, gate: Path) -> None:
    """Nobody renews what nobody has begun: it is closed at the lease's end, and the job runs elsewhere."""
    with injections.frozen(injections.launcher_of(plane, "a")):
        job_id = plane.submit(lesson(10))
        plane.until(lambda: plane.client.job(job_id)["attempt"], "it is placed", stated_s=10)
        assert plane.client.job(job_id)["attempt"]["host"] == "a"
        injections.kill_worker(plane, "a")
    closed = programs.until_closed(plane, job_id, stated_s=200)
    assert (closed["exit_reason"], closed["started_at"]) == ("lease_expired", None)
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["host"]) == ("succeeded", "b")


def _sweeper(plane: Plane) -> str:
    def holder() -> str | None:
        with plane.database.read() as session:
            return session.scalar(select(Lease.holder))

    return plane.until(holder, "somebody sweeps", stated_s=120)


def _rows(plane: Plane, job_id: str) -> tuple[object, ...]:
    """All that the first attempt has left."""
    with plane.database.read() as session:
        attempt = session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == 1)).one()
        chunks = session.scalars(select(LogChunk.offset).where(LogChunk.attempt_id == attempt.id)).all()
    return attempt.beat, attempt.status, attempt.message, attempt.metrics_offset, *chunks
