"""Checkpoints and what they mean for the tries: progress is a step beyond every earlier one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from store import attempts, checkpoints, events, jobs
from store.db import Database
from store.errors import LeaseLost, PlacementConflict
from store.models import Attempt
from store.states import ExitReason, JobStatus


def publish(database: Database, attempt: Attempt, step: int) -> None:
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        checkpoints.publish(
            session, job, attempt_id=attempt.id, step=step, dir=f"step-{step}", manifest_sha256=f"{step:064}"
        )


def fail_and_begin_again(database: Database, attempt: Attempt) -> Attempt:
    with database.write() as session:
        attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=ExitReason.INFRA, message="why", devices_clean=True
        )
    with database.write() as session:
        following = attempts.place(session, attempt.job_id, host="a", device_indices=[0, 1])
    with database.write() as session:
        attempts.begin(session, following.id, job_id=following.job_id, boot_id="b")
    return following


def strikes(database: Database, attempt: Attempt) -> int:
    with database.read() as session:
        return jobs.get(session, attempt.job_id).strikes


def steps(database: Database, attempt: Attempt) -> list[int]:
    with database.read() as session:
        return [one.step for one in checkpoints.newest_first(session, attempt.job_id)]


def condemn(database: Database, attempt: Attempt, step: int) -> None:
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        (one,) = [one for one in checkpoints.newest_first(session, attempt.job_id) if one.step == step]
        checkpoints.condemn(session, job, one.id)


def test_only_a_step_beyond_the_earlier_ones_forgives(database: Database, running: Attempt) -> None:
    publish(database, running, 20)
    second = fail_and_begin_again(database, running)
    for step, left in ((10, 1), (20, 1), (21, 0)):
        publish(database, second, step)
        assert strikes(database, second) == left, step


def test_a_job_that_saves_the_same_step_again_and_again_fails_in_the_end(database: Database, running: Attempt) -> None:
    publish(database, running, 20)
    attempt = running
    for _ in range(4):
        attempt = fail_and_begin_again(database, attempt)
        publish(database, attempt, 20)
    with database.write() as session:
        closing = attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=ExitReason.INFRA, message="why", devices_clean=True
        )
    assert closing.job_status is JobStatus.FAILED


def test_one_that_is_corrupt_is_told_once_and_never_offered_again(database: Database, running: Attempt) -> None:
    for step in (10, 20, 30):
        publish(database, running, step)
    assert steps(database, running) == [30, 20, 10]
    condemn(database, running, 30)
    assert steps(database, running) == [20, 10]
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        (row,) = [one for _, one in checkpoints.of_job(session, running.job_id) if one.step == 20]
        checkpoints.condemn(session, job, row.id)
        checkpoints.condemn(session, job, row.id)
    with database.read() as session:
        told = [
            event.data["step"] for event in events.page(session, running.job_id, limit=99) if "corrupt" in event.kind
        ]
        listed = [one.step for _, one in checkpoints.of_job(session, running.job_id)]
    assert (told, listed) == ([30, 20], [10])


def test_what_is_trained_anew_after_a_corrupt_one_is_progress(database: Database, running: Attempt) -> None:
    publish(database, running, 10)
    publish(database, running, 30)
    second = fail_and_begin_again(database, running)
    condemn(database, second, 30)
    publish(database, second, 20)
    assert strikes(database, second) == 0


def test_a_step_that_is_written_anew_is_whole_again(database: Database, running: Attempt) -> None:
    publish(database, running, 10)
    condemn(database, running, 10)
    publish(database, running, 10)
    assert steps(database, running) == [10]


def test_a_stale_holder_condemns_nothing(database: Database, running: Attempt) -> None:
    publish(database, running, 10)
    fail_and_begin_again(database, running)
    with pytest.raises(LeaseLost):
        condemn(database, running, 10)
    assert steps(database, running) == [10]


def test_the_next_attempt_shows_the_step_that_it_goes_on_from(database: Database, running: Attempt) -> None:
    publish(database, running, 10)
    publish(database, running, 20)
    condemn(database, running, 20)
    second = fail_and_begin_again(database, running)
    with database.read() as session:
        assert jobs.get(session, second.job_id).step == 10


def test_running_time_adds_up_over_attempts_until_a_retry(database: Database, running: Attempt) -> None:
    def run_on(attempt: Attempt, ran_s: float) -> None:
        with database.write() as session:
            attempts.renew(session, attempt.id, job_id=attempt.job_id, ran_s=ran_s)

    def total() -> float:
        with database.read() as session:
            return jobs.get(session, running.job_id).ran_s

    run_on(running, 7.0)
    run_on(running, 5.0)
    assert total() == 0.0
    second = fail_and_begin_again(database, running)
    assert total() == 7.0
    run_on(second, 2.0)
    with database.write() as session:
        attempts.close(
            session, second.id, job_id=second.job_id, reason=ExitReason.TIME_LIMIT, message="why", devices_clean=True
        )
    assert total() == 9.0
    with database.write() as session:
        jobs.retry(session, running.job_id)
    assert total() == 0.0


def test_a_job_gets_as_many_devices_as_it_asked_for(database: Database, host: str, submit: Callable[[], str]) -> None:
    job_id = submit()
    for indices in ([0], [0, 1, 2]):
        with pytest.raises(PlacementConflict), database.write() as session:
            attempts.place(session, job_id, host=host, device_indices=indices)
