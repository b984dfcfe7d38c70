"""Wake-ups over Redis pub/sub: ids only, never data. One that is lost costs the listener a poll, nothing else."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import redis

CHANNEL_JOBS: Final = "longyard:jobs"
"""Carries the id of any job that changed."""
CHANNEL_HOSTS: Final = "longyard:hosts"
"""Carries the name of any host that changed."""

RETRY_S: Final = 1.0


def channel_job(job_id: str) -> str:
    """Something of the job was committed: its streams look."""
    return f"longyard:job:{job_id}"


def channel_intent(job_id: str) -> str:
    """The job's intent was changed: its supervisor looks."""
    return f"longyard:intent:{job_id}"


class Notifier:
    """Publishes, and gives up at once when Redis is away: truth is in the database, and everybody polls it as well."""

    def __init__(self, redis_url: str, *, timeout_s: float = 0.25) -> None:
        # driver_info: else every new connection looks the library's own version up, in milliseconds, to tell the server.
        self._client: redis.Redis = redis.Redis.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, driver_info=None
        )
        self._silent_until = 0.0

    def publish_job(self, job_id: str) -> None:
        self._publish((channel_job(job_id), job_id), (CHANNEL_JOBS, job_id))

    def publish_intent(self, job_id: str) -> None:
        self._publish((channel_intent(job_id), job_id))

    def publish_host(self, name: str) -> None:
        self._publish((CHANNEL_HOSTS, name))

    @contextmanager
    def subscribed(self, *channels: str) -> Generator[Any]:
        """A redis-py PubSub on these channels. Raises redis.RedisError where it cannot be had; the caller polls instead."""
        with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(*channels)
            yield pubsub

    def close(self) -> None:
        self._client.close()

    def _publish(self, *messages: tuple[str, str]) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for channel, message in messages:
                    pipeline.publish(channel, message)
                pipeline.execute()
        except redis.RedisError:
            self._silent_until = time.monotonic() + RETRY_S
