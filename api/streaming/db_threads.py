"""Looks at the database on behalf of streams: on few threads of their own, so that requests keep theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
import structlog

from api.errors import DATABASE_ERRORS

READERS: Final = 8
RETRY_S: Final = 1.0

log = structlog.get_logger("api.streaming.db_threads")
_Arguments = TypeVarTuple("_Arguments")
_Answer = TypeVar("_Answer")


class Reading:
    """Awaited with a blocking look. A database that is away is asked again, for as long as somebody waits for the answer."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, look: Callable[[Unpack[_Arguments]], _Answer], *arguments: *_Arguments) -> _Answer:
        self._limiter = self._limiter or anyio.CapacityLimiter(READERS)
        while True:
            try:
                return await anyio.to_thread.run_sync(look, *arguments, limiter=self._limiter)
            except DATABASE_ERRORS as error:
                log.warning("a stream waits for the database", error=type(error).__name__)
            await asyncio.sleep(RETRY_S)
