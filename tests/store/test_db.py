"""What the engines promise of connections and transactions."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from store import jobs
from store.db import Database
from store.jobs import NewJob


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_writer_that_stands_still_does_not_keep_its_job_locked(database: Database, database_url: str) -> None:
    """As one whose host was stopped, or cut off, in the middle of a transaction."""
    with database.write() as session:
        job_id = jobs.submit(session, NewJob("any", "demo", {}, 1, "cpu"), owner="admin")[0].id
    standing = Database(database_url, idle_transaction_s=0.3)
    try:
        with pytest.raises(DBAPIError, match="idle-in-transaction"):
            _write_around(standing, database, job_id)
    finally:
        standing.dispose()
    with database.read() as session:
        assert jobs.get(session, job_id).rev == 2


def _write_around(standing: Database, database: Database, job_id: str) -> None:
    with standing.write() as session:
        jobs.touch(session, job_id)
        # Waits for the row's lock, for ten seconds at most.
        with database.write() as other:
            jobs.cancel(other, job_id)
