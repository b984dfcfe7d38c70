from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from store import attempts, events, jobs
from store.db import Database
from store.errors import IdempotencyConflict, IllegalTransition, NotFound, PlacementConflict
from store.jobs import NewJob
from store.models import Attempt, Job
from store.states import ExitReason, Intent, JobStatus

Submit = Callable[[], str]


def test_a_job_reads_back_as_it_was_given(database: Database, new_job: NewJob) -> None:
    with database.write() as session:
        job, replayed = jobs.submit(session, new_job, owner="admin")
    with database.read() as session:
        found = jobs.get(session, job.id)
        assert not replayed
        assert (found.name, found.train, found.labels, found.num_devices) == ("first", {"seed": 1}, {"team": "nlp"}, 2)
        assert (found.status, found.intent, found.created_at.utcoffset()) == (
            JobStatus.QUEUED,
            Intent.RUN,
            job.created_at.utcoffset(),
        )
        assert [event.kind for event in events.page(session, job.id)] == ["submitted"]


def test_the_same_key_gives_the_same_job(database: Database, new_job: NewJob) -> None:
    def submit(body: str) -> tuple[Job, bool]:
        with database.write() as session:
            return jobs.submit(session, new_job, owner="admin", idempotency_key="k", request_sha256=body)

    first, replayed = submit("body")
    again, replayed_again = submit("body")
    assert (first.id, replayed, replayed_again) == (again.id, False, True)
    with pytest.raises(IdempotencyConflict):
        submit("another body")


def test_two_that_bring_one_key_at_once_leave_one_job(database: Database, new_job: NewJob) -> None:
    """Whatever the interleaving: both see the same job, or the loser is told by the constraint and rolls back whole."""
    start, outcomes = threading.Barrier(4), list[str]()

    def submit() -> None:
        start.wait()
        try:
            with database.write() as session:
                job, _ = jobs.submit(session, new_job, owner="admin", idempotency_key="k", request_sha256="b")
            outcomes.append(job.id)
        except IntegrityError:
            outcomes.append("refused")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        stored = [job.id for job in jobs.page(session).rows]
    assert len(stored) == 1
    assert len(outcomes) == 4
    assert set(outcomes) <= {stored[0], "refused"}


def test_another_owners_job_is_as_absent_as_any(database: Database, submit: Submit) -> None:
    job_id = submit()
    with database.read() as session:
        for wrong in (lambda: jobs.get(session, job_id, owner="eve"), lambda: jobs.get(session, "nobody", owner="eve")):
            with pytest.raises(NotFound, match=r"^no such job$"):
                wrong()


def test_pages_join_without_gap_or_overlap(database: Database, submit: Submit) -> None:
    submitted = [submit() for _ in range(7)]
    with database.read() as session:
        seen, after = list[str](), None
        while True:
            page = jobs.page(session, after=after, limit=3)
            seen += [job.id for job in page.rows]
            after = page.next
            if after is None:
                break
    assert seen == submitted[::-1]


def test_filters_narrow_the_page(database: Database, new_job: NewJob) -> None:
    with database.write() as session:
        jobs.submit(session, new_job, owner="admin")
        other, _ = jobs.submit(session, replace(new_job, name="100% Other_x", labels={"team": "cv"}), owner="bob")
        jobs.cancel(session, other.id)
    with database.read() as session:
        found = [
            jobs.page(session, owner="bob"),
            jobs.page(session, labels={"team": "cv"}),
            jobs.page(session, status=JobStatus.CANCELLED),
            jobs.page(session, text="other_X"),
            jobs.page(session, text="0% o"),
        ]
        assert [[job.id for job in page.rows] for page in found] == [[other.id]] * 5
        assert jobs.page(session, text="100_").rows == []


def test_cancel_ends_a_queued_job_at_once_and_again_is_no_error(database: Database, submit: Submit) -> None:
    job_id = submit()
    for _ in range(2):
        with database.write() as session:
            assert jobs.cancel(session, job_id).status is JobStatus.CANCELLED
    with database.read() as session:
        kinds = [event.kind for event in events.page(session, job_id)]
    assert kinds == ["submitted", "cancel_requested", "status"]


def test_cancel_of_a_running_job_is_an_intent_that_preempt_does_not_undo(database: Database, running: Attempt) -> None:
    with database.write() as session:
        jobs.cancel(session, running.job_id)
        jobs.preempt(session, running.job_id, why="drain")
    with database.read() as session:
        job = jobs.get(session, running.job_id)
    assert (job.status, job.intent) == (JobStatus.RUNNING, Intent.CANCEL)


def test_a_retry_begins_at_nothing(database: Database, running: Attempt) -> None:
    """Its strikes, its wait and the time that counts towards its limit."""
    with database.write() as session:
        attempts.renew(session, running.id, job_id=running.job_id, ran_s=99.0)
        attempts.close(
            session, running.id, job_id=running.job_id, reason=ExitReason.TIME_LIMIT, message="", devices_clean=True
        )
    with database.write() as session:
        assert jobs.get(session, running.job_id).ran_s == 99.0
        job = jobs.retry(session, running.job_id)
    assert (job.status, job.ran_s, job.strikes, job.retry_delay_s) == (JobStatus.QUEUED, 0.0, 0, 0.0)


def test_an_illegal_move_writes_nothing(database: Database, submit: Submit) -> None:
    job_id = submit()
    with pytest.raises(IllegalTransition), database.write() as session:
        jobs.move(session, jobs.touch(session, job_id), JobStatus.SUCCEEDED, reason=None)
    with database.read() as session:
        job = jobs.get(session, job_id)
    assert (job.status, job.rev, job.num_events) == (JobStatus.QUEUED, 1, 1)


def test_the_database_itself_refuses_an_unknown_status(database: Database, submit: Submit) -> None:
    job_id = submit()
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("UPDATE jobs SET status = 'confused' WHERE id = :id"), {"id": job_id})


def test_only_the_queued_are_told_why_they_wait(database: Database, submit: Submit) -> None:
    first, second = submit(), submit()
    with database.write() as session:
        jobs.cancel(session, second)
    with database.write() as session:
        assert jobs.set_wait(session, first, reason="needs 2", reservation={"host": "a"})
        assert not jobs.set_wait(session, second, reason="needs 2")
        assert jobs.touch_together(session, {first, second}) == [first]
    with database.write() as session:
        assert jobs.get(session, first).rev == 3
        assert jobs.pause(session, first).reservation is None, "what does not wait keeps nothing from others"


def test_revs_commit_in_order_though_writers_race(database: Database, submit: Submit) -> None:
    job_id = submit()

    def write() -> None:
        for _ in range(10):
            with database.write() as session:
                events.append(session, jobs.touch(session, job_id), kind="noted")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        rows = events.page(session, job_id, limit=100)
    assert [event.seq for event in rows] == list(range(1, 42))
    assert [event.rev for event in rows] == sorted(event.rev for event in rows)
    assert len({event.rev for event in rows}) == 41


def test_a_job_has_one_open_attempt_at_most(database: Database, running: Attempt) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(
            Attempt(
                id="x",
                job_id=running.job_id,
                number=9,
                host="a",
                device_type="cpu",
                devices=[3],
                status="starting",
                created_at=running.created_at,
            )
        )


def test_the_same_job_is_not_placed_twice(database: Database, running: Attempt) -> None:
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, running.job_id, host="a", device_indices=[2, 3])


def test_a_closed_attempt_must_have_a_reason(database: Database, running: Attempt) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(update(Attempt).where(Attempt.id == running.id).values(status="failed"))
