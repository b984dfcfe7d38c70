"""Every answer that this process keeps open: how many there are, what waits to be sent on each, and what ends them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import anyio.to_thread

from api.errors import DATABASE_ERRORS, Problem
from store import tokens
from store.db import Database
from store.tokens import Identity

MAX_STREAMS: Final = 500
MAX_WAITING_BATCHES: Final = 64
MAX_WAITING_BYTES: Final = 4 << 20
CHECK_S: Final = 0.8  # a revoked secret loses its streams within a second


@dataclass(frozen=True)
class Batch:
    """What one look at the database gave, encoded once for all who follow: everything after cursor `after` up to `upto`.

    `ended`: nothing will follow. `more`: there is more right now.
    """

    after: int
    upto: int
    data: bytes
    ended: bool = False
    more: bool = False


class Stream:
    """One open answer: a bounded box of batches. A client that reads too slowly finds it empty, and has missed something."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.wake = asyncio.Event()
        self.ended = False
        self.has_missed = False
        self._waiting: deque[Batch] = deque()
        self._num_bytes = 0

    def put(self, batch: Batch) -> None:
        if self.ended:
            return
        self._waiting.append(batch)
        self._num_bytes += len(batch.data)
        if len(self._waiting) > MAX_WAITING_BATCHES or self._num_bytes > MAX_WAITING_BYTES:
            self._empty()
            self.has_missed = True
        self.wake.set()

    def take(self) -> Batch | None:
        if not self._waiting:
            return None
        batch = self._waiting.popleft()
        self._num_bytes -= len(batch.data)
        return batch

    async def wait(self, timeout_s: float) -> bool:
        """Until something woke it (True) or the time is over (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.wake.wait()
        except TimeoutError:
            return False
        self.wake.clear()
        return True

    def end(self) -> None:
        self.ended = True
        self._empty()
        self.wake.set()

    def _empty(self) -> None:
        self._waiting.clear()
        self._num_bytes = 0


class Streams:
    def __init__(self, database: Database) -> None:
        self.limit = MAX_STREAMS
        self._database = database
        self._open: set[Stream] = set()
        self._closing = False
        self._checking: asyncio.Task[None] | None = None

    @property
    def num_open(self) -> int:
        return len(self._open)

    def all_open(self) -> list[Stream]:
        return list(self._open)

    def check_room(self) -> None:
        """Raises Problem where this process has as many streams as it takes."""
        if len(self._open) >= self.limit:
            raise Problem("rate_limited", f"{self.limit} streams are open here already.", headers={"Retry-After": "5"})

    @contextmanager
    def open(self, identity: Identity) -> Generator[Stream]:
        stream = Stream(identity)
        self._open.add(stream)
        if self._closing:
            stream.end()
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def end_all(self) -> None:
        self._closing = True
        for stream in list(self._open):
            stream.end()
        if self._checking is not None:
            self._checking.cancel()

    async def _check(self) -> None:
        """End the streams whose secret has been revoked or has expired since they were opened."""
        while self._open:
            await asyncio.sleep(CHECK_S)
            shown = {stream.identity.token_sha256 for stream in self._open}
            try:
                valid = await anyio.to_thread.run_sync(self._valid, shown)
            except DATABASE_ERRORS:
                continue
            for stream in list(self._open):
                if stream.identity.token_sha256 in shown - valid:
                    stream.end()
        self._checking = None

    def _valid(self, shown: set[str]) -> set[str]:
        with self._database.read() as session:
            return tokens.valid(session, shown)
