"""The same life of an attempt where the database is PostgreSQL, which refuses what SQLite lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.states import ExitReason, JobStatus
from tests.worker.conftest import Plane


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
