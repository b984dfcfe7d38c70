"""Passes over a real database: a delay after a failure is waited out by the planner's own clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from store import attempts, hosts, jobs
from store.jobs import NewJob
from store.states import ExitReason, JobStatus
from worker.planner import Planner

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


def test_a_retry_waits_for_its_delay_and_others_pass_it(plane: Plane) -> None:
    database = plane.database
    with database.write() as session:
        hosts.register(session, "a", device_type="cpu", device_names=["slot"], boot_id="1", versions={})
        job_id = jobs.submit(session, _spec(), owner="admin")[0].id
    planner = Planner(database)
    (placed,) = planner.run().placed
    with database.write() as session:
        attempts.close(
            session, placed.attempt_id, job_id=job_id, reason=ExitReason.INFRA, message="gone", devices_clean=True
        )
        jobs.touch(session, job_id).retry_delay_s = 0.5
    held = planner.run()
    assert held.placed == []
    assert held.again_in_s is not None
    assert 0 < held.again_in_s <= 0.5
    assert "try 2 starts" in (plane.job(job_id).wait_reason or "")
    with database.write() as session:
        other = jobs.submit(session, _spec(), owner="admin")[0].id
    (passed,) = planner.run().placed
    assert passed.job_id == other
    with database.write() as session:
        attempts.begin(session, passed.attempt_id, job_id=other, boot_id="1")
        attempts.close(
            session, passed.attempt_id, job_id=other, reason=ExitReason.COMPLETED, message=None, devices_clean=True
        )
    plane.eventually(lambda: planner.run().placed)
    assert plane.job(job_id).status is JobStatus.RUNNING
    # Another planner has not seen how long it waits: it waits the whole delay itself.
    assert plane.attempt(job_id).number == 2


def test_a_wait_is_written_once(plane: Plane) -> None:
    with plane.database.write() as session:
        job_id = jobs.submit(session, _spec(), owner="admin")[0].id
    planner = Planner(plane.database)
    assert planner.run().told == [job_id]
    rev = plane.job(job_id).rev
    assert planner.run().told == []
    assert plane.job(job_id).rev == rev
    assert "no host is online" in (plane.job(job_id).wait_reason or "")


def _spec() -> NewJob:
    return NewJob("waits", "demo", {}, 1, "cpu")
