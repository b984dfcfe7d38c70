"""Rows and offsets in one transaction: whatever is lost on the way, each byte and point is there once."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from store import attempts, events, hosts, jobs
from store.db import Database
from store.errors import LeaseLost
from store.jobs import NewJob
from store.models import Attempt
from store.states import ExitReason, Intent, JobStatus
from worker.ingest.writer import Ledger
from worker.supervisor.exit_reason import Verdict

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


class Flaky(Database):
    """A database whose next write fails before its commit, or commits and loses the reply."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.next: Literal["before", "after"] | None = None

    @contextmanager
    def write(self) -> Generator[Session]:
        failure, self.next = self.next, None
        with super().write() as session:
            yield session
            if failure == "before":
                raise OperationalError("COMMIT", None, Exception("gone before"))
        if failure == "after":
            raise OperationalError("COMMIT", None, Exception("gone after"))

    @contextmanager
    def write_never(self) -> Generator[Session]:
        raise OperationalError("BEGIN", None, Exception("away"))
        yield


@pytest.fixture
def attempt(plane: Plane) -> Attempt:
    with plane.database.write() as session:
        hosts.register(session, "a", device_type="cpu", device_names=["slot"] * 2, boot_id="1", versions={})
        job_id = jobs.submit(session, NewJob("t", "demo", {}, 2, "cpu"), owner="admin")[0].id
    with plane.database.write() as session:
        placed = attempts.place(session, job_id, host="a", device_indices=[0, 1])
        attempts.begin(session, placed.id, job_id=job_id, boot_id="1")
    return placed


@pytest.fixture
def flaky(plane: Plane) -> Generator[Flaky]:
    database = Flaky(plane.settings.db_url)
    yield database
    database.dispose()


def _ledger(plane: Plane, database: Database, attempt: Attempt) -> Ledger:
    run_dir = plane.run_dir(attempt.job_id)
    run_dir.mkdir(parents=True, exist_ok=True)
    return Ledger(
        database,
        attempt_id=attempt.id,
        job_id=attempt.job_id,
        run_dir=run_dir,
        num_ranks=2,
        max_log_bytes=1 << 20,
        retry_s=10.0,
    )


def _write(run_dir: Path, step: int) -> None:
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "metrics", "step": step, "at": step, "values": {"loss": float(step)}}) + "\n")
    for rank in (0, 1):
        with open(run_dir / f"r{rank}.log", "a") as file:
            file.write(f"rank {rank} step {step}\n")


def test_each_byte_and_point_once_however_commits_fail(plane: Plane, flaky: Flaky, attempt: Attempt) -> None:
    ledger, run_dir = _ledger(plane, flaky, attempt), plane.run_dir(attempt.job_id)
    failures: list[Literal["before", "after"] | None] = [
        "before",
        "after",
        None,
        "after",
        "before",
        "before",
        "after",
        None,
    ]
    for step, failure in enumerate(failures, start=1):
        _write(run_dir, step)
        flaky.next = failure
        if failure is None:
            ledger.commit()
        else:
            with pytest.raises(OperationalError):
                ledger.commit()
        if step == 4:
            # Another writer takes over, as after a supervisor's death.
            ledger = _ledger(plane, flaky, attempt)
    ledger.close(Verdict(ExitReason.COMPLETED, None, result={}), devices_clean=True)
    assert plane.series(attempt.job_id, "loss") == [(step, float(step)) for step in range(1, len(failures) + 1)]
    for rank in (0, 1):
        assert plane.log(attempt.job_id, rank=rank) == (run_dir / f"r{rank}.log").read_bytes()
    assert plane.job(attempt.job_id).status is JobStatus.SUCCEEDED


def test_nothing_is_written_for_an_attempt_that_is_closed(plane: Plane, attempt: Attempt) -> None:
    ledger, run_dir = _ledger(plane, plane.database, attempt), plane.run_dir(attempt.job_id)
    _write(run_dir, 1)
    ledger.commit()
    with plane.database.write() as session:
        attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=ExitReason.LEASE_EXPIRED, message="", devices_clean=False
        )
    _write(run_dir, 2)
    for late in (ledger.commit, lambda: ledger.close(Verdict(ExitReason.COMPLETED, None), devices_clean=True)):
        with pytest.raises(LeaseLost):
            late()
    assert plane.series(attempt.job_id, "loss") == [(1, 1.0)]
    assert plane.job(attempt.job_id).status is JobStatus.QUEUED


def test_the_intent_comes_with_the_renewal(plane: Plane, attempt: Attempt) -> None:
    ledger = _ledger(plane, plane.database, attempt)
    before = ledger.renewed_at
    plane.cancel(attempt.job_id)
    assert ledger.intent is Intent.RUN
    ledger.commit()
    assert ledger.intent is Intent.CANCEL
    assert ledger.renewed_at > before


def test_a_name_too_many_is_dropped_and_told(plane: Plane, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ingest.writer.MAX_NAMES", 3)
    ledger, run_dir = _ledger(plane, plane.database, attempt), plane.run_dir(attempt.job_id)
    values = {f"m{number}": 1.0 for number in range(4)}
    line = json.dumps({"kind": "metrics", "step": 1, "at": 1, "values": values})
    (run_dir / "metrics.jsonl").write_text(line + "\n")
    ledger.commit()
    assert [len(plane.series(attempt.job_id, name)) for name in values] == [1, 1, 1, 0]
    assert "metrics_dropped" in plane.kinds(attempt.job_id)


def test_the_cap_on_names_is_the_jobs_whoever_writes(
    plane: Plane, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.ingest.writer.MAX_NAMES", 2)
    run_dir = plane.run_dir(attempt.job_id)
    for step, names in enumerate([("a", "b"), ("c", "b", "a")], start=1):
        # A writer of its own each time, as after a supervisor's death.
        ledger = _ledger(plane, plane.database, attempt)
        line = {"kind": "metrics", "step": step, "at": step, "values": dict.fromkeys(names, 1.0)}
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        ledger.commit()
    assert [len(plane.series(attempt.job_id, name)) for name in ("a", "b", "c")] == [2, 2, 0]


def test_what_is_told_once_is_told_once_however_commits_fail(plane: Plane, flaky: Flaky, attempt: Attempt) -> None:
    ledger, run_dir = _ledger(plane, flaky, attempt), plane.run_dir(attempt.job_id)
    failures: list[Literal["before", "after"] | None] = ["before", "after", None]
    for failure in failures:
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write("no JSON\n")
        flaky.next = failure
        if failure is None:
            ledger.commit()
        else:
            with pytest.raises(OperationalError):
                ledger.commit()
    assert plane.kinds(attempt.job_id).count("metrics_skipped") == 1


def test_each_rank_whose_log_is_capped_is_named(plane: Plane, attempt: Attempt) -> None:
    run_dir = plane.run_dir(attempt.job_id)
    run_dir.mkdir(parents=True)
    for rank in (0, 1):
        (run_dir / f"r{rank}.log").write_bytes(b"x" * 300_000)
    ledger = Ledger(
        plane.database,
        attempt_id=attempt.id,
        job_id=attempt.job_id,
        run_dir=run_dir,
        num_ranks=2,
        max_log_bytes=100_000,
        retry_s=10.0,
    )
    for _ in range(20):
        ledger.commit()
    capped = [event.data for event in plane.events(attempt.job_id) if event.kind == "log_capped"]
    assert sorted((one["attempt"], one["rank"]) for one in capped) == [(1, 0), (1, 1)]


def test_a_checkpoint_outside_its_own_directory_is_refused(plane: Plane, attempt: Attempt) -> None:
    ledger, run_dir = _ledger(plane, plane.database, attempt), plane.run_dir(attempt.job_id)
    for directory in ("/etc", str(run_dir / "checkpoints" / ".." / ".."), str(run_dir / "checkpoints" / "step-1")):
        line = {"kind": "checkpoint", "step": 1, "dir": directory, "manifest_sha256": "0" * 64}
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    ledger.commit()
    with plane.database.read() as session:
        told = [(event.kind, event.data.get("dir")) for event in events.page(session, attempt.job_id, limit=99)]
    assert ("checkpoint_refused", "/etc") in told
    assert [directory for kind, directory in told if kind == "checkpoint"] == [str(run_dir / "checkpoints" / "step-1")]
