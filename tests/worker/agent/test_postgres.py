"""The same life of an attempt where the database is PostgreSQL, which refuses what SQLite lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store import jobs
from store.states import ExitReason, JobStatus
from tests.worker.conftest import Plane
from tests.worker.processes import is_running
from worker.supervisor import run_lock


@pytest.fixture
def on_postgres(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Iterator[Plane]:
    plane = Plane(tmp_path, sqlite_template, database_url=request.getfixturevalue("database_url"))
    plane.start()
    yield plane
    plane.stop()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_success_failure_and_cancel(on_postgres: Plane, database_url: str) -> None:
    plane = on_postgres
    good = plane.submit(
        [
            {"do": "write", "hex": "00ff0a"},
            {"do": "count", "first": 1, "last": 5},
            {"do": "metrics", "step": 6, "values": {"loss": "nan", "n\x00l": 1}},
            {"do": "checkpoint", "step": 6},
            {"do": "succeed", "train_loss": float("nan"), "note": "a\x00b\ud800"},
        ]
    )
    bad = plane.submit([{"do": "fail", "type": "ValueError", "message": "nul \x00 and half \ud83d"}])
    job = plane.until_ended(good)
    assert job.status is JobStatus.SUCCEEDED
    assert job.result is not None
    assert (job.result["train_loss"], job.result["note"]) == (None, "a\ufffdb?")
    assert plane.log(good).startswith(b"\x00\xff\nstep 1\n")
    assert plane.series(good, "loss") == [*((step, float(step)) for step in range(1, 6)), (6, None)]
    assert plane.until_ended(bad).status is JobStatus.FAILED
    assert plane.attempt(bad).exit_reason is ExitReason.USER_ERROR
    slow = plane.submit([{"do": "say", "text": "up"}, {"do": "wait_for_stop"}], num_devices=2)
    plane.until_log(slow, b"up")
    plane.cancel(slow)
    assert plane.until_ended(slow).status is JobStatus.CANCELLED
    plane.assert_clean(slow)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_supervisor_cut_from_a_shared_database_ends_its_ranks_before_the_lease(
    on_postgres: Plane, database_url: str
) -> None:
    """Another host may start the job again once the lease is over: by then nothing of it may run here."""
    plane = on_postgres
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "wait_for_stop", "save": 3}])
    plane.until_log(job_id, b"up")
    (rank,) = plane.ranks(job_id)
    with plane.database.write() as session:
        jobs.touch(session, job_id)
        plane.eventually(lambda: not is_running(rank), within_s=plane.settings.lease_s)
        assert run_lock.holder(plane.run_dir(job_id)) is not None, "the supervisor waits to tell"
    plane.until_status(job_id, JobStatus.QUEUED)
    attempt = plane.attempt(job_id)
    assert attempt.exit_reason is ExitReason.LEASE_EXPIRED
    assert "could not reach the database" in (attempt.message or "")
    assert "checkpoint" in plane.kinds(job_id)
    assert plane.log(job_id).endswith(b"stopped\n")
