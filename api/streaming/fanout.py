"""One reader for whatever many follow: a job's changes, or the changes of all jobs and hosts. Its batches go to every stream's box."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass, field
from typing import Final

import structlog
from fastapi.sse import KEEPALIVE_COMMENT

from api import serializers
from api.streaming import job_changes
from api.streaming.connections import Batch, Stream
from api.streaming.db_threads import Reading
from api.streaming.job_changes import Cursor
from api.streaming.subscriber import Hub
from store import hosts, jobs
from store.db import Database
from store.pubsub import CHANNEL_HOSTS, CHANNEL_JOBS, channel_job
from store.states import TERMINAL_JOB

PING_S: Final = 15.0
MIN_PAUSE_S: Final = 0.005
"""Between two looks of one reader: wake-ups that come thicker share a look."""

log = structlog.get_logger("api.streaming.fanout")


@dataclass(eq=False)
class _JobFeed:
    streams: set[Stream] = field(default_factory=set[Stream])
    task: asyncio.Task[None] | None = None


class JobFeeds:
    """A reader for each job that somebody follows."""

    def __init__(self, database: Database, hub: Hub, reading: Reading) -> None:
        self._database, self._hub, self._reading = database, hub, reading
        self._feeds: dict[str, _JobFeed] = {}

    async def follow(self, job_id: str, cursor: Cursor, stream: Stream) -> AsyncIterator[bytes]:
        """Everything after the cursor, then what happens, until the job has ended or the stream has.

        It catches up by looks of its own, then takes what the reader puts into its box, as long as that continues the cursor:
        a client so slow that its box was emptied catches up by itself again.
        """
        self._join(job_id, stream)
        live = False
        try:
            while not stream.ended:
                batch = stream.take() if live else await self._read(job_id, cursor)
                if batch is None:
                    if not await stream.wait(PING_S):
                        yield KEEPALIVE_COMMENT
                elif live and batch.after != cursor.rev:
                    live = batch.upto <= cursor.rev and not batch.ended
                else:
                    if batch.data:
                        yield batch.data
                    if batch.ended:
                        return
                    cursor, live = Cursor(batch.upto), live or not batch.more
        finally:
            self._leave(job_id, stream)

    async def close(self) -> None:
        tasks = [feed.task for feed in self._feeds.values() if feed.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, job_id: str, stream: Stream) -> None:
        feed = self._feeds.setdefault(job_id, _JobFeed())
        feed.streams.add(stream)
        if feed.task is None:
            feed.task = asyncio.create_task(self._run(job_id, feed))
            feed.task.add_done_callback(lambda task: self._finished(job_id, feed, task))

    def _leave(self, job_id: str, stream: Stream) -> None:
        feed = self._feeds.get(job_id)
        if feed is None or stream not in feed.streams:
            return
        feed.streams.discard(stream)
        if not feed.streams:
            del self._feeds[job_id]
            if feed.task is not None:
                feed.task.cancel()

    async def _run(self, job_id: str, feed: _JobFeed) -> None:
        wake = asyncio.Event()
        async with self._hub.listening(wake, channel_job(job_id)):
            cursor = Cursor(await self._reading(self._rev, job_id))
            # What was committed between a follower's own look and this one would wait for the next change: let it look again.
            for stream in list(feed.streams):
                stream.put(Batch(cursor.rev, cursor.rev, b""))
            more = False
            while True:
                if not more:
                    await _pause(wake, self._hub.poll_s)
                batch = await self._read(job_id, cursor)
                if batch.data:
                    for stream in list(feed.streams):
                        stream.put(batch)
                cursor, more = Cursor(batch.upto), batch.more

    def _finished(self, job_id: str, feed: _JobFeed, task: asyncio.Task[None]) -> None:
        if self._feeds.get(job_id) is feed:
            del self._feeds[job_id]
        _end_with(task, feed.streams)

    async def _read(self, job_id: str, cursor: Cursor) -> Batch:
        return await self._reading(job_changes.read, self._database, job_id, cursor)

    def _rev(self, job_id: str) -> int:
        with self._database.read() as session:
            return jobs.get(session, job_id).rev


class PlaneFeed:
    """The reader for those who follow all jobs and hosts."""

    def __init__(self, database: Database, hub: Hub, reading: Reading) -> None:
        self._database, self._hub, self._reading = database, hub, reading
        self._streams: set[Stream] = set()
        self._task: asyncio.Task[None] | None = None
        self._surveyed = asyncio.Event()

    async def follow(self, stream: Stream) -> AsyncIterator[bytes]:
        """`reset` first: whoever reads the lists after it misses nothing."""
        self._streams.add(stream)
        if self._task is None:
            self._surveyed = asyncio.Event()
            self._task = asyncio.create_task(self._run(self._surveyed))
            self._task.add_done_callback(self._finished)
        surveyed = self._surveyed
        try:
            while not surveyed.is_set() and not stream.ended:
                if not await stream.wait(PING_S):
                    yield KEEPALIVE_COMMENT
            yield job_changes.event("reset", "{}")
            # This stream does not resume: one that has missed something ends, and its client begins with a new `reset`.
            while not stream.ended and not stream.has_missed:
                batch = stream.take()
                if batch is not None:
                    yield batch.data
                elif not await stream.wait(PING_S):
                    yield KEEPALIVE_COMMENT
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._stop()

    async def close(self) -> None:
        task = self._stop()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        _end_with(task, self._streams)

    def _stop(self) -> asyncio.Task[None] | None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def _run(self, surveyed: asyncio.Event) -> None:
        wake, seen = asyncio.Event(), _Seen()
        async with self._hub.listening(wake, CHANNEL_JOBS, CHANNEL_HOSTS):
            await self._reading(self._look, seen)
            surveyed.set()
            for stream in self._streams:
                stream.wake.set()
            while True:
                messages = await self._reading(self._look, seen)
                for stream in list(self._streams):
                    mine = [
                        data for owner, data in messages if owner is None or serializers.sees(stream.identity, owner)
                    ]
                    if mine:
                        stream.put(Batch(0, 0, b"".join(mine)))
                await _pause(wake, self._hub.poll_s)

    def _look(self, seen: _Seen) -> list[tuple[str | None, bytes]]:
        """What differs from what was seen, as (owner or None for everybody, message); the first look only remembers."""
        with self._database.read() as session:
            revs = jobs.revs(session, newer_than=seen.newest)
            changed = [job_id for job_id in revs.keys() | seen.revs.keys() if seen.revs.get(job_id) != revs.get(job_id)]
            rows = [] if seen.is_new else jobs.many(session, changed)
            messages: list[tuple[str | None, bytes]] = [
                (job.owner, job_changes.event("job", job.model_dump_json())) for job in serializers.many(session, rows)
            ]
            shown = {view.host.name: serializers.host(view) for view in hosts.all_hosts(session)}
        # A beat every few seconds is no change worth a message.
        states = {name: host.model_dump_json(exclude={"last_seen_at"}) for name, host in shown.items()}
        if not seen.is_new:
            differing = [host for name, host in shown.items() if seen.hosts.get(name) != states[name]]
            messages += [(None, job_changes.event("host", host.model_dump_json())) for host in differing]
        finished = {row.id for row in rows if row.status in TERMINAL_JOB}
        seen.revs = {job_id: rev for job_id, rev in revs.items() if job_id not in finished}
        seen.newest = max([seen.newest, *revs])
        seen.hosts, seen.is_new = states, False
        return messages


@dataclass
class _Seen:
    """What the reader of all jobs knew at its last look: revs by job id, host states by name."""

    revs: dict[str, int] = field(default_factory=dict[str, int])
    newest: str = ""
    hosts: dict[str, str] = field(default_factory=dict[str, str])
    is_new: bool = True


def _end_with(task: asyncio.Task[None], streams: Set[Stream]) -> None:
    """A reader that fails takes its streams with it: their clients come back, with the cursor they had."""
    if task.cancelled() or task.exception() is None:
        return
    log.error("a reader failed", exc_info=task.exception())
    for stream in list(streams):
        stream.end()


async def _pause(wake: asyncio.Event, poll_s: float) -> None:
    """Until woken, or until it is time to look anyway."""
    await asyncio.sleep(MIN_PAUSE_S)
    try:
        async with asyncio.timeout(poll_s):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()
