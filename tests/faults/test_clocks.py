"""Time that goes wrong: a supervisor or a whole host that stands still past its lease (F12), wall clocks that jump (F15)."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from store.models import Attempt, Lease, LogChunk
from tests.faults import injections, programs
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.worker.processes import is_running

PARTS = ("api", "worker", "worker.launcher", "tests.fake_trainer")


@pytest.mark.parametrize("judge", ["its own host", "another host"])
def test_f12_a_supervisor_that_stood_still_past_its_lease(pair: Plane, gate: Path, judge: str) -> None:
    """Whoever judges, its own host ends it and its ranks before the job runs again anywhere (K3)."""
    sweeper = _sweeper(pair)
    is_on_b = (sweeper == "b") == (judge == "its own host")
    job_id = pair.submit(lesson(hold_at=30, gate=gate), num_devices=3 if is_on_b else 1)
    programs.until_saved(pair, job_id)
    supervisor, ranks = injections.supervisor_of(pair, job_id), injections.ranks_of(pair, job_id)
    with injections.frozen(supervisor, between_writes_of=pair):
        closed = programs.until_closed(pair, job_id, stated_s=150)
        pair.until(lambda: not any(map(is_running, [supervisor, *ranks.values()])), "it is ended", stated_s=10)
    assert closed["exit_reason"] in ("infra", "lease_expired")
    gate.touch()
    job = programs.until_ended(pair, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 2)


def test_f12_a_host_that_stood_still_past_its_lease_writes_nothing_more(pair: Plane, gate: Path) -> None:
    """All of host a stops; b takes the job over and finishes it; a goes on, and finds itself too late."""
    job_id = pair.submit(lesson(hold_at=30, gate=gate))
    programs.until_saved(pair, job_id)
    assert pair.client.job(job_id)["attempt"]["host"] == "a"
    supervisor, (rank,) = injections.supervisor_of(pair, job_id), injections.ranks_of(pair, job_id).values()
    with injections.frozen(pair.worker("a").pid, supervisor, between_writes_of=pair):
        # A frozen rank would keep its locks, and be a second holder to the kernel of this one machine.
        os.kill(rank, signal.SIGKILL)
        programs.until_closed(pair, job_id, stated_s=200)
        gate.touch()
        assert programs.until_ended(pair, job_id)["attempt"]["host"] == "b"
        before = _rows(pair, job_id)
        with open(pair.run_dir(job_id) / "r0.log", "ab") as file:
            file.write(b"too late\n")
    pair.until(lambda: not is_running(supervisor), "the late supervisor has left", stated_s=30)
    assert _rows(pair, job_id) == before
    assert "too late" not in pair.client.log(job_id, attempt=1)


def test_f15_wall_clocks_that_jump_change_nothing(pair: Plane, gate: Path) -> None:
    job_id = pair.submit(lesson(hold_at=30, gate=gate))
    programs.until_step(pair, job_id, 30)
    for offset_s in (3600, -3600):
        for part in PARTS:
            pair.switch(f"clock {part}", str(offset_s))
        beat = _beat(pair, job_id)
        pair.until(lambda beat=beat: _beat(pair, job_id) >= beat + 6, "its lease is renewed", stated_s=60)
        other = pair.submit(lesson(10))
        job = programs.until_ended(pair, other)
        assert job["status"] == "succeeded"
        assert abs(_seconds_between(pair.client.job(job_id)["created_at"], job["created_at"]) - offset_s) < 600
    gate.touch()
    job = programs.until_ended(pair, job_id)
    for part in PARTS:
        pair.switch(f"clock {part}", None)
    assert job["status"] == "succeeded"
    assert all(one["exit_reason"] not in ("lease_expired", "hung") for one in pair.client.attempts(job_id))


def _sweeper(plane: Plane) -> str:
    def holder() -> str | None:
        with plane.database.read() as session:
            return session.scalar(select(Lease.holder))

    return plane.until(holder, "somebody sweeps", stated_s=120)


def _beat(plane: Plane, job_id: str) -> int:
    with plane.database.read() as session:
        return (
            session.scalars(
                select(Attempt.beat).where(Attempt.job_id == job_id).order_by(Attempt.number.desc())
            ).first()
            or 0
        )


def _rows(plane: Plane, job_id: str) -> tuple[object, ...]:
    """All that the first attempt has left."""
    with plane.database.read() as session:
        attempt = session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == 1)).one()
        chunks = session.scalars(select(LogChunk.offset).where(LogChunk.attempt_id == attempt.id)).all()
    return attempt.beat, attempt.status, attempt.message, attempt.metrics_offset, *chunks


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
