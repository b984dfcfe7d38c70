"""One thread that commits submissions: those that arrive together share a transaction."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import IntegrityError

from api import errors
from api.publisher import Hints
from store import jobs
from store.db import Database
from store.errors import LongyardError
from store.jobs import Submission
from store.models import Job

MAX_BATCH: Final = 64
MAX_WAITING: Final = 1000
ANSWER_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class _Waiting:
    submission: Submission
    answer: Future[tuple[Job, bool]]


class Writer:
    """32 clients that commit one by one wait for each other's fsync; together they pay one."""

    def __init__(self, database: Database, hints: Hints) -> None:
        self._database, self._hints = database, hints
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    async def submit(self, submission: Submission) -> tuple[Job, bool]:
        """The committed job, and whether an earlier request had made it. Raises what `store.jobs.submit` does, and database errors."""
        waiting = _Waiting(submission, Future())
        self._start()
        try:
            self._waiting.put_nowait(waiting)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.wrap_future(waiting.answer)
        except (queue.Full, TimeoutError):
            raise errors.unavailable() from None

    def close(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout=5)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                another = self._waiting.get()
                if another is None:
                    self._waiting.put(None)
                    break
                batch.append(another)
            # Who has given up waiting was told that nothing is stored.
            self._commit([one for one in batch if one.answer.set_running_or_notify_cancel()])

    def _commit(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = self._store([one.submission for one in batch])
        except Exception as error:  # noqa: BLE001 - the thread's edge: every caller gets it, and the edge there logs it
            if len(batch) > 1 and not isinstance(error, errors.DATABASE_ERRORS):
                # One of them breaks the transaction: find out which, and let the others through.
                for one in batch:
                    self._commit([one])
                return
            for one in batch:
                one.answer.set_exception(error)
            return
        for one, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, LongyardError):
                one.answer.set_exception(outcome)
            else:
                one.answer.set_result(outcome)
                self._hints.submitted(outcome[0].id)

    def _store(self, submissions: list[Submission]) -> list[tuple[Job, bool] | LongyardError]:
        try:
            with self._database.write() as session:
                return jobs.submit_together(session, submissions)
        except IntegrityError:
            # Another replica has just used the same key: its row is there now, and the second look finds it.
            with self._database.write() as session:
                return jobs.submit_together(session, submissions)
