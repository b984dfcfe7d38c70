"""A job and a host to begin with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from store import attempts, hosts, jobs
from store.db import Database
from store.jobs import NewJob
from store.models import Attempt


@pytest.fixture
def new_job() -> NewJob:
    return NewJob(
        name="first", preset="demo", train={"seed": 1}, num_devices=2, device_type="cpu", labels={"team": "nlp"}
    )


@pytest.fixture
def host(database: Database) -> str:
    with database.write() as session:
        hosts.register(
            session, "a", device_type="cpu", device_names=["slot"] * 4, boot_id="boot-1", versions={"torch": "2.13.0"}
        )
    return "a"


@pytest.fixture
def submit(database: Database, new_job: NewJob) -> Callable[[], str]:
    def submit() -> str:
        with database.write() as session:
            return jobs.submit(session, new_job, owner="admin")[0].id

    return submit


@pytest.fixture
def running(database: Database, host: str, submit: Callable[[], str]) -> Attempt:
    """The running attempt of a job that holds devices 0 and 1."""
    job_id = submit()
    with database.write() as session:
        attempt = attempts.place(session, job_id, host=host, device_indices=[0, 1])
    with database.write() as session:
        attempts.begin(session, attempt.id, job_id=job_id, boot_id="boot-1")
    return attempt
