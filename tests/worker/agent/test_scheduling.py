"""Passes over a real database: a delay after a failure is waited out by the planner's own clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from store import attempts, hosts, jobs, planning_queue
from store.db import Database, now
from store.jobs import NewJob
from store.states import ExitReason, Intent, JobStatus
from worker.agent.scheduling import Planner

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


@pytest.mark.parametrize("ends_by", ["its host has looked", "its host is lost"])
def test_a_job_waits_until_no_process_of_its_last_try_is_left(plane: Plane, ends_by: str) -> None:
    """K3: who closed it was elsewhere; a rank that was given time to save may live on beside the next one."""
    database = plane.database
    host(database, "a", 2)
    host(database, "b", 2)
    job_id = submit(database, 1)
    planner = Planner(database)
    (placed,) = planner.run().placed
    with database.write() as session:
        attempts.close(
            session, placed.attempt_id, job_id=job_id, reason=ExitReason.LEASE_EXPIRED, message="", devices_clean=False
        )
        jobs.touch(session, job_id).retry_delay_s = 0.0
    held = planner.run()
    assert (held.placed, held.again_in_s) == ([], None)
    assert plane.job(job_id).wait_reason == f"{placed.host} is still ending what its last try left there"
    other = submit(database, 1)
    assert [one.job_id for one in planner.run().placed] == [other], "the others pass it"
    with database.write() as session:
        if ends_by == "its host is lost":
            hosts.lose(session, placed.host)
        else:
            hosts.free(session, placed.attempt_id)
    assert [one.job_id for one in planner.run().placed] == [job_id]


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


def test_each_waits_for_a_reason_at_a_place_and_is_written_only_where_that_changes(plane: Plane) -> None:
    database = plane.database
    host(database, "a", 8)
    first = submit(database, 8)
    planner = Planner(database)
    (placed,) = planner.run().placed
    with database.write() as session:
        attempts.begin(session, placed.attempt_id, job_id=first, boot_id="1")
        jobs.progress(session, jobs.touch(session, first), step=1, total_steps=2, phase="train", eta_s=2300.0)
    big, small, behind = submit(database, 8), submit(database, 1), submit(database, 1)
    done = planner.run()
    assert (done.placed, set(done.told)) == ([], {big, small, behind})
    assert plane.job(big).wait_reason == "needs 8 free cpu devices on one host; a frees 8 in about 40 min"
    told_at = plane.job(big).estimated_start_at
    assert told_at is not None
    assert 2200 < (told_at - now()).total_seconds() < 2300
    with database.read() as session:
        places = planning_queue.positions(session, [big, small, behind])
    revs = [plane.job(one).rev for one in (big, small, behind)]
    assert planner.run().told == []
    with database.write() as session:
        jobs.progress(session, jobs.touch(session, first), step=1, total_steps=2, phase="train", eta_s=2290.0)
    assert Planner(database).run().told == [], "ten seconds make no news"
    assert [plane.job(one).rev for one in (big, small, behind)] == revs
    with database.write() as session:
        jobs.cancel(session, min(places, key=lambda one: places[one]))
    assert len(planner.run().told) == 2, "both have moved up"
    with database.read() as session:
        assert sorted(planning_queue.positions(session, [one for one in places if places[one] > 1]).values()) == [1, 2]


def test_a_promise_outlives_the_planner_that_made_it(plane: Plane) -> None:
    """However many jobs of owners who had nothing come after it."""
    database = plane.database
    host(database, "a", 2)
    runs = [submit(database, 1), submit(database, 1)]
    one, other = Planner(database).run().placed
    big = submit(database, 2)
    assert Planner(database).run().placed == []
    assert plane.job(big).reservation == {"level": 0, "number": 1, "host": "a", "device_indices": [0, 1]}
    for number in range(4):
        submit(database, 1, owner=f"new-{number}")
    finish(database, one.attempt_id, one.job_id)
    assert Planner(database).run().placed == []
    assert plane.job(big).wait_reason == "needs 2 free cpu devices on one host; a has 1 of 2 free, kept for it"
    finish(database, other.attempt_id, other.job_id)
    (started,) = Planner(database).run().placed
    assert started.job_id == big
    assert plane.job(big).reservation is None
    assert set(runs) == {one.job_id, other.job_id}


def test_a_high_job_asks_a_low_one_to_make_room(plane: Plane) -> None:
    database = plane.database
    host(database, "a", 2)
    low = submit(database, 2, priority=-1)
    planner = Planner(database)
    (placed,) = planner.run().placed
    high = submit(database, 1, priority=100)
    assert planner.run().asked == [low]
    assert plane.job(low).intent is Intent.PREEMPT
    assert "a makes room" in (plane.job(high).wait_reason or "")
    assert planner.run().asked == []
    with database.write() as session:
        attempts.close(
            session, placed.attempt_id, job_id=low, reason=ExitReason.PREEMPTED, message=None, devices_clean=True
        )
    assert [one.job_id for one in planner.run().placed] == [high]
    assert plane.job(low).status is JobStatus.QUEUED


def test_owners_are_held_to_their_quotas(plane: Plane) -> None:
    host(plane.database, "a", 8)
    for owner in ("ada", "eve"):
        for _ in range(5):
            submit(plane.database, 1, owner=owner)
    placed = Planner(plane.database, quotas={"*": 2, "eve": 3}).run().placed
    owners = [plane.job(one.job_id).owner for one in placed]
    assert (owners.count("ada"), owners.count("eve")) == (2, 3)


def test_a_pass_over_one_job_reads_three_statements(plane: Plane) -> None:
    """And two without any: it is on the way of every submission."""
    host(plane.database, "a", 1)
    planner = Planner(plane.database)
    seen: list[str] = []
    event.listen(
        plane.database.engine, "before_cursor_execute", lambda _c, _cu, statement, *_: seen.append(statement.split()[0])
    )
    planner.run()
    assert seen.count("SELECT") == 1
    submit(plane.database, 2)
    planner.run()
    seen.clear()
    assert planner.run().told == []
    assert seen.count("SELECT") == 3
    assert set(seen) <= {"SELECT", "BEGIN"}


def host(database: Database, name: str, size: int) -> None:
    with database.write() as session:
        hosts.register(session, name, device_type="cpu", device_names=["slot"] * size, boot_id="1", versions={})


def submit(database: Database, num_devices: int, *, owner: str = "ada", priority: int = 0) -> str:
    with database.write() as session:
        return jobs.submit(session, NewJob("waits", "demo", {}, num_devices, "cpu", priority), owner=owner)[0].id


def finish(database: Database, attempt_id: str, job_id: str) -> None:
    with database.write() as session:
        attempts.begin(session, attempt_id, job_id=job_id, boot_id="1")
        attempts.close(
            session, attempt_id, job_id=job_id, reason=ExitReason.COMPLETED, message=None, devices_clean=True
        )
