"""Wake-ups that come in: one Redis subscription a process, shared by all who wait. It carries no data, only a reason to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import redis.asyncio
import structlog
from redis.exceptions import RedisError

POLL_S: Final = 3.0
POLL_WHILE_AWAY_S: Final = 1.0
RETRY_S: Final = 1.0

log = structlog.get_logger("api.streaming.subscriber")


class Hub:
    """Sets the events of those who listen to a channel. Redis may be away: `poll_s` says how long one may sleep then."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._pubsub: Any = None
        self._task: asyncio.Task[None] | None = None

    @property
    def poll_s(self) -> float:
        return POLL_WHILE_AWAY_S if self._pubsub is None else POLL_S

    @asynccontextmanager
    async def listening(self, event: asyncio.Event, *channels: str) -> AsyncGenerator[None]:
        """`event` is set on every message of the channels, and once they are subscribed to: what was missed before is seen then."""
        new = [channel for channel in channels if channel not in self._listeners]
        for channel in channels:
            self._listeners.setdefault(channel, set()).add(event)
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            elif new:
                await self._tell("subscribe", *new)
            yield
        finally:
            left = [channel for channel in channels if self._leave(channel, event)]
            if left:
                await self._tell("unsubscribe", *left)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _leave(self, channel: str, event: asyncio.Event) -> bool:
        self._listeners[channel].discard(event)
        if self._listeners[channel]:
            return False
        del self._listeners[channel]
        return True

    async def _tell(self, verb: str, *channels: str) -> None:
        if self._pubsub is None:
            return
        # The reading task notices a failure too, and subscribes to everything anew.
        with suppress(RedisError, OSError):
            await getattr(self._pubsub, verb)(*channels)

    async def _run(self) -> None:
        while True:
            try:
                await self._read()
            except (RedisError, OSError) as error:
                log.info("no wake-ups from the broker; polling", error=type(error).__name__)
            self._pubsub = None
            await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        # No health checks: one that falls due while nothing is subscribed reads the socket inside `subscribe`, as this task does.
        client = redis.asyncio.Redis.from_url(self._redis_url, socket_connect_timeout=RETRY_S, health_check_interval=0)
        async with client, client.pubsub() as pubsub:
            if not self._listeners:
                return
            await pubsub.subscribe(*self._listeners)
            self._pubsub = pubsub
            while True:
                message: Any = await pubsub.get_message(timeout=5.0)
                if message is not None and message["type"] in ("message", "subscribe"):
                    for event in self._listeners.get(message["channel"].decode(), ()):
                        event.set()
