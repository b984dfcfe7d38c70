"""The checks themselves: each lie that one is there for is told once, and found out."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from linux.proc import ATTEMPT_VARIABLE
from store import attempts
from tests.faults import checks, programs, witness
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import NotInTime, Timings

Lie = Callable[[Plane, str], None]


def _sql(statement: str) -> Lie:
    def lie(plane: Plane, job_id: str) -> None:
        # Behind the database's back: with its constraints it refuses most of these.
        with closing(sqlite3.connect(plane.settings.data_dir / "longyard.db", timeout=30)) as connection, connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f'DROP TRIGGER "{name}"')
            assert connection.execute(statement, {"id": job_id}).rowcount > 0

    return lie


def _grow(plane: Plane, job_id: str) -> None:
    with open(plane.run_dir(job_id) / "r0.log", "ab") as file:
        file.write(b"said, and never committed\n")


def _hold_twice(plane: Plane, job_id: str) -> None:
    with plane.database.read() as session:
        attempt = attempts.newest(session, job_id)
    assert attempt is not None
    code = f"from pathlib import Path; from tests.faults import witness; witness.take(Path({str(plane.run_dir(job_id))!r}), 0)"
    lock = plane.settings.data_dir / witness.DIRECTORY / f"job-{job_id}-rank-0.lock"
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        environment = {**os.environ, ATTEMPT_VARIABLE: attempt.id}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _promise(plane: Plane, job_id: str) -> None:
    plane.client.promised(uuid.uuid4().hex, job_id, plane.spec([]))


@pytest.mark.parametrize(
    ("check", "lie"),
    [
        (checks.learnt_without_a_gap, _sql("UPDATE metric_points SET value = 1 WHERE job_id = :id AND step = 7")),
        (checks.learnt_without_a_gap, _sql("DELETE FROM metric_points WHERE job_id = :id AND step = 7")),
        (checks.learnt_without_a_gap, _sql("DELETE FROM metric_points WHERE job_id = :id AND step > 55")),
        (checks.logs_as_written, _sql("DELETE FROM metric_points WHERE job_id = :id AND step = 60")),
        (checks.logs_as_written, _sql("DELETE FROM log_chunks WHERE job_id = :id")),
        (
            checks.logs_as_written,
            _sql("UPDATE log_chunks SET data = CAST('x' AS BLOB) || substr(data, 2) WHERE job_id = :id"),
        ),
        (checks.logs_as_written, _sql("DELETE FROM events WHERE job_id = :id AND seq = 2")),
        (checks.logs_as_written, _grow),
        (lambda plane, _job_id: checks.nothing_held_twice(plane), _hold_twice),
        (lambda plane, _job_id: checks.promises_kept(plane), _promise),
        (lambda plane, _job_id: checks.promises_kept(plane), _sql("UPDATE jobs SET status = 'failed' WHERE id = :id")),
    ],
)
def test_a_lie_is_found_out(shared: Plane, check: Lie, lie: Lie) -> None:
    job_id = shared.submit(lesson())
    assert programs.until_ended(shared, job_id)["status"] == "succeeded"
    checks.all_of(shared, [job_id])
    lie(shared, job_id)
    with pytest.raises(AssertionError):
        check(shared, job_id)
    _forget(shared, job_id)


def test_what_is_left_behind_is_found(shared: Plane, gate: Path) -> None:
    job_id = shared.submit(lesson())
    programs.until_ended(shared, job_id)
    with shared.database.read() as session:
        attempt = attempts.newest(session, job_id)
    assert attempt is not None
    stray = subprocess.Popen(["sleep", "600"], env={**os.environ, ATTEMPT_VARIABLE: attempt.id})
    hurried = Timings(shared.timings.scale, patience_s=0.0)
    patient, shared.timings = shared.timings, hurried
    try:
        with pytest.raises(NotInTime):
            checks.all_of(shared, [job_id])
    finally:
        shared.timings = patient
        stray.kill()
        stray.wait()
    checks.all_of(shared, [job_id])


def _forget(plane: Plane, job_id: str) -> None:
    """The lie must not be found again by the next test."""
    promises = plane.client.promises
    promises.submitted.pop(job_id)
    promises.ended.pop(job_id, None)
    (plane.settings.data_dir / witness.DIRECTORY / witness.RECORD).unlink(missing_ok=True)
