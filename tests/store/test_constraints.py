"""What no code may do: SQL that breaks an invariant is refused by the database itself."""

# ruff: noqa: S608 - the statements are made of names and enums of ours

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from store import attempts, checkpoints, hosts, logs
from store.db import Database
from store.models import Attempt
from store.states import ATTEMPT_TRANSITIONS, INTENTS, JOB_TRANSITIONS, AttemptStatus, ExitReason, Intent, JobStatus

Submit = Callable[[], str]


class Rejected(Exception):
    """Takes back what a test only tried."""


@pytest.fixture
def execute(database: Database, running: Attempt) -> Callable[..., None]:
    """Runs statements in one transaction; `:job` and `:attempt` are the running ones."""

    def execute(*statements: str) -> None:
        with database.write() as session:
            for statement in statements:
                session.execute(text(statement), {"job": running.job_id, "attempt": running.id})

    return execute


CLOSE = "UPDATE attempts SET status = 'failed', exit_reason = 'infra', finished_at = created_at WHERE id = :attempt"
QUEUE = "UPDATE jobs SET status = 'queued' WHERE id = :job"
DOUBT = "UPDATE devices SET state = 'unverified' WHERE attempt_id = :attempt"
SECOND_ATTEMPT = """
    INSERT INTO attempts (id, job_id, number, host, device_type, devices, simulated, status, beat, metrics_offset, ran_s, created_at)
    SELECT 'x', job_id, 2, host, device_type, devices, simulated, 'starting', 0, 0, 0, created_at FROM attempts"""
SECOND_HOST = """
    INSERT INTO hosts (name, status, device_type, simulated, boot_id, beat, versions, registered_at, last_seen_at)
    SELECT 'b', status, device_type, simulated, boot_id, beat, versions, registered_at, last_seen_at FROM hosts"""
ITS_DEVICE = "INSERT INTO devices (host, \"index\", name, state, attempt_id) VALUES ('b', 0, '', 'held', :attempt)"
EVENT = """
    INSERT INTO events (job_id, seq, rev, kind, data, at)
    SELECT job_id, {seq}, rev, kind, data, at FROM events WHERE job_id = :job AND seq = 1"""
CHUNK = """
    INSERT INTO log_chunks (attempt_id, rank, "offset", job_id, rev, num_bytes, data)
    SELECT id, 0, 0, job_id, 1, 3, CAST('ab' AS {bytes}) FROM attempts"""

REFUSED = {
    "a running job has an open attempt": ("fk_jobs_id_is_running_attempts", [CLOSE, DOUBT]),
    "an open attempt has a running job": ("fk_attempts_job_id_is_open_jobs", [QUEUE]),
    "a job has one open attempt at most": ("uq_attempts_job_id_is_open", [SECOND_ATTEMPT]),
    "what is held is held by an open attempt": ("fk_devices_host_attempt_id_is_held_attempts", [CLOSE, QUEUE]),
    "what is held is held on its attempt's host": (
        "fk_devices_host_attempt_id_is_held_attempts",
        [SECOND_HOST, ITS_DEVICE],
    ),
    "what is free has no holder": ("ck_devices_free_has_no_holder", ["UPDATE devices SET state = 'free'"]),
    "what is held has a holder": ("ck_devices_held_has_a_holder", ["UPDATE devices SET state = 'held'"]),
    "what is unverified has a holder": ("ck_devices_held_has_a_holder", ["UPDATE devices SET state = 'unverified'"]),
    "events have no gap": ("fk_events_job_id_previous_events", [EVENT.format(seq=9)]),
    "events begin at 1": ("ck_events_seq", [EVENT.format(seq=0)]),
    "an event does not go while another follows it": (
        "fk_events_job_id_previous_events",
        ["DELETE FROM events WHERE job_id = :job AND seq = 2"],
    ),
    "an event is not rewritten": ("never rewritten", ["UPDATE events SET kind = 'invented' WHERE seq = 1"]),
    "only what has ended has an end": ("ck_jobs_finished", ["UPDATE jobs SET finished_at = created_at"]),
    "what runs has begun": ("ck_jobs_started", ["UPDATE jobs SET started_at = NULL"]),
    "only the queued wait": ("ck_jobs_only_the_queued_wait", ["UPDATE jobs SET wait_reason = 'x'"]),
    "strikes are counted from 0": ("ck_jobs_counters", ["UPDATE jobs SET strikes = -1"]),
    "no delay is negative": ("ck_jobs_durations", ["UPDATE jobs SET retry_delay_s = -1"]),
    "nothing has run for less than no time": ("ck_jobs_durations", ["UPDATE jobs SET ran_s = -1"]),
    "what has begun knows when": ("ck_attempts_started", ["UPDATE attempts SET started_at = NULL"]),
    "what is closed says why": (
        "ck_attempts_closed_has_reason",
        [CLOSE.replace("exit_reason = 'infra',", ""), QUEUE, DOUBT],
    ),
    "what is closed says when": (
        "ck_attempts_finished",
        [CLOSE.replace(", finished_at = created_at", ""), QUEUE, DOUBT],
    ),
    "a reason fits its status": ("ck_attempts_reason_fits", [CLOSE.replace("'infra'", "'completed'"), QUEUE, DOUBT]),
    "an attempt begins once": ("cannot become", ["UPDATE attempts SET status = 'starting' WHERE id = :attempt"]),
    "the offset is not negative": ("ck_attempts_counters", ["UPDATE attempts SET metrics_offset = -1"]),
    "a chunk has the bytes that it says": ("ck_log_chunks_num_bytes", [CHUNK]),
    "no more is dropped than there was": (
        "ck_rank_logs_dropped_bytes",
        ["INSERT INTO rank_logs (attempt_id, rank, end_offset, dropped_bytes) VALUES (:attempt, 0, 5, 6)"],
    ),
}
"""Each with the constraint that refuses it, or with words of the trigger."""


@pytest.mark.parametrize("invariant", REFUSED)
def test_what_breaks_an_invariant_is_refused(database: Database, execute: Callable[..., None], invariant: str) -> None:
    constraint, statements = REFUSED[invariant]
    kind = "BLOB" if database.is_sqlite else "BYTEA"
    words = _WORDS_OF_SQLITE.get(constraint[:2], constraint) if database.is_sqlite else constraint
    with pytest.raises(IntegrityError, match=words):
        execute(*(statement.replace("{bytes}", kind) for statement in statements))


def test_the_same_statements_are_accepted_where_they_go_together(execute: Callable[..., None]) -> None:
    execute(CLOSE, QUEUE, DOUBT)


@pytest.fixture
def closed(database: Database, running: Attempt) -> Attempt:
    """An attempt that has logs and a checkpoint and was closed since."""
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        logs.append(session, job, attempt_id=running.id, rank=0, offset=0, data=b"line\n")
        checkpoints.publish(session, job, attempt_id=running.id, step=1, dir="d", manifest_sha256="0" * 64)
    with database.write() as session:
        attempts.close(
            session, running.id, job_id=running.job_id, reason=ExitReason.INFRA, message="why", devices_clean=True
        )
    return running


LATE = {
    "its lease is not renewed": "UPDATE attempts SET beat = beat + 1",
    "its offset stands": "UPDATE attempts SET metrics_offset = 9",
    "it is not opened again": "UPDATE attempts SET status = 'running', exit_reason = NULL, finished_at = NULL",
    "its verdict stands": "UPDATE attempts SET exit_reason = 'hung'",
    "its logs do not grow": "UPDATE rank_logs SET end_offset = 9",
    "no other rank's log begins": "INSERT INTO rank_logs VALUES (:attempt, 1, 1, 0)",
    "it publishes nothing": """
        INSERT INTO checkpoints (id, job_id, attempt_id, rev, step, dir, manifest_sha256, created_at)
        SELECT 'x', job_id, attempt_id, rev, 2, dir, manifest_sha256, created_at FROM checkpoints""",
}


@pytest.mark.parametrize("promise", LATE)
def test_nobody_writes_for_an_attempt_that_is_closed(
    closed: Attempt, execute: Callable[..., None], promise: str
) -> None:
    with pytest.raises(IntegrityError, match="the attempt is closed"):
        execute(LATE[promise])


@pytest.mark.parametrize("before", JobStatus)
def test_a_job_becomes_only_what_the_transitions_allow(database: Database, submit: Submit, before: JobStatus) -> None:
    job_id = submit()
    for after in set(JobStatus) - {before}:
        statements = [_set(status) for status in (*_WAY_TO[before], after)]
        assert _tried(database, statements, job=job_id) == (after in JOB_TRANSITIONS[before]), after


def test_only_a_retry_takes_a_cancel_back(database: Database, execute: Callable[..., None]) -> None:
    execute("UPDATE jobs SET intent = 'cancel' WHERE id = :job")
    for intent in (Intent.RUN, Intent.PAUSE, Intent.PREEMPT):
        with pytest.raises(IntegrityError, match="not taken back"):
            execute(f"UPDATE jobs SET intent = '{intent.value}'")


@pytest.mark.parametrize(("status", "intent"), list(product(JobStatus, Intent)))
def test_a_status_allows_its_intents_alone(
    database: Database, submit: Submit, status: JobStatus, intent: Intent
) -> None:
    job_id = submit()
    statements = [*(_set(before) for before in _WAY_TO[status][:-1]), _set(status, intent)]
    assert _tried(database, statements, job=job_id) == (intent in INTENTS[status])


@pytest.mark.parametrize("before", [AttemptStatus.STARTING, AttemptStatus.RUNNING])
def test_an_attempt_becomes_only_what_the_transitions_allow(
    database: Database, host: str, submit: Submit, before: AttemptStatus
) -> None:
    job_id = submit()
    with database.write() as session:
        attempt = attempts.place(session, job_id, host=host, device_indices=[0, 1])
        if before is AttemptStatus.RUNNING:
            attempts.begin(session, attempt.id, job_id=job_id, boot_id="b")
    reasons = {"succeeded": "completed", "cancelled": "user_cancelled", "stopped": "paused", "lost": "lease_expired"}
    for after in set(AttemptStatus) - {before}:
        ended = after not in (AttemptStatus.STARTING, AttemptStatus.RUNNING)
        reason = f"'{reasons.get(after.value, 'infra')}', finished_at = created_at" if ended else "NULL"
        statement = (
            f"UPDATE attempts SET status = '{after.value}', exit_reason = {reason}, started_at = created_at "
            f"WHERE job_id = :job"
        )
        assert _tried(database, [statement], job=job_id) == (after in ATTEMPT_TRANSITIONS[before]), after


def test_a_job_can_go_with_all_that_is_its_own(database: Database, closed: Attempt, host: str) -> None:
    with database.write() as session:
        session.execute(text("DELETE FROM jobs WHERE id = :job"), {"job": closed.job_id})
    with database.read() as session:
        for table in ("attempts", "events", "checkpoints", "log_chunks", "rank_logs"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
        assert [one.device.state.value for one in hosts.all_hosts(session)[0].devices] == ["free"] * 4


_WORDS_OF_SQLITE = {"fk": "FOREIGN KEY constraint failed", "uq": "UNIQUE constraint failed"}
"""It names its checks alone."""

_INTENT_OF = {JobStatus.PAUSED: Intent.PAUSE, JobStatus.CANCELLED: Intent.CANCEL}
_WAY_TO = {
    JobStatus.QUEUED: [],
    JobStatus.RUNNING: [JobStatus.RUNNING],
    JobStatus.PAUSED: [JobStatus.PAUSED],
    JobStatus.CANCELLED: [JobStatus.CANCELLED],
    JobStatus.SUCCEEDED: [JobStatus.RUNNING, JobStatus.SUCCEEDED],
    JobStatus.FAILED: [JobStatus.RUNNING, JobStatus.FAILED],
}


def _set(status: JobStatus, intent: Intent | None = None) -> str:
    intent = intent or _INTENT_OF.get(status, Intent.RUN)
    ended = "created_at" if status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED) else "NULL"
    return (
        f"UPDATE jobs SET status = '{status.value}', intent = '{intent.value}', finished_at = {ended}, "
        "started_at = created_at WHERE id = :job"
    )


def _tried(database: Database, statements: list[str], *, job: str) -> bool:
    """Whether the statements are accepted one by one; nothing of them stays, so what only a commit looks at does not count."""
    try:
        with database.write() as session:
            for statement in statements:
                session.execute(text(statement), {"job": job})
            raise Rejected
    except Rejected:
        return True
    except IntegrityError:
        return False
