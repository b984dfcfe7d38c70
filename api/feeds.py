"""One reader for whatever many follow: a job's changes, or the changes of all jobs and hosts. Its batches go to every stream's box."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from fastapi.sse import KEEPALIVE_COMMENT

from api import changes, views
from api.changes import Cursor
from api.hub import Hub
from api.reading import Reading
from api.streams import Batch, Stream
from store import hosts, jobs
from store.db import Database
from store.errors import NotFound
from store.notify import CHANNEL_HOSTS, CHANNEL_JOBS, channel_job
from store.states import TERMINAL_JOB

PING_S: Final = 15.0
MIN_PAUSE_S: Final = 0.02
"""Between two looks of one reader: wake-ups that come thicker share a look."""


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
        """Everything after the cursor, then what happens, until the job has ended or the stream has."""
        self._join(job_id, stream)
        try:
            while not stream.ended:
                batch = await self._reading(lambda: changes.read(self._database, job_id, cursor))  # noqa: B023
                if batch.data:
                    yield batch.data
                cursor = Cursor(batch.upto)
                if batch.ended:
                    return
                if not batch.more:
                    async for data, cursor in self._live(stream, cursor):
                        yield data
                    if cursor.rev < 0:
                        return
        except NotFound:
            return
        finally:
            self._leave(job_id, stream)

    async def close(self) -> None:
        tasks = [feed.task for feed in self._feeds.values() if feed.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, stream: Stream, cursor: Cursor) -> AsyncIterator[tuple[bytes, Cursor]]:
        """What the reader puts into the box, as long as it continues the cursor. A negative cursor says that it was the last."""
        while not stream.ended:
            batch = stream.take()
            if batch is None:
                if not await stream.wait(PING_S):
                    yield KEEPALIVE_COMMENT, cursor
                continue
            if batch.upto <= cursor.rev and not batch.ended:
                continue
            if batch.after != cursor.rev:
                return
            cursor = Cursor(-1 if batch.ended else batch.upto)
            yield batch.data, cursor
            if batch.ended:
                return

    def _join(self, job_id: str, stream: Stream) -> None:
        feed = self._feeds.setdefault(job_id, _JobFeed())
        feed.streams.add(stream)
        if feed.task is None:
            feed.task = asyncio.create_task(self._run(job_id, feed))

    def _leave(self, job_id: str, stream: Stream) -> None:
        feed = self._feeds.get(job_id)
        if feed is None:
            return
        feed.streams.discard(stream)
        if not feed.streams:
            del self._feeds[job_id]
            if feed.task is not None:
                feed.task.cancel()

    async def _run(self, job_id: str, feed: _JobFeed) -> None:
        wake = asyncio.Event()
        async with self._hub.listening(wake, channel_job(job_id)):
            cursor = Cursor(await self._reading(lambda: self._rev(job_id)))
            while True:
                batch = await self._reading(lambda: changes.read(self._database, job_id, cursor))  # noqa: B023
                if batch.data:
                    for stream in list(feed.streams):
                        stream.put(batch)
                cursor = Cursor(batch.upto)
                if not batch.more:
                    await _pause(wake, self._hub.poll_s)

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
        try:
            await self._surveyed.wait()
            yield changes.event("reset", "{}")
            while not stream.ended:
                batch = stream.take()
                if batch is not None:
                    yield batch.data
                elif not await stream.wait(PING_S):
                    yield KEEPALIVE_COMMENT
        finally:
            self._streams.discard(stream)
            if not self._streams and self._task is not None:
                self._task.cancel()
                self._task = None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, surveyed: asyncio.Event) -> None:
        wake, seen = asyncio.Event(), _Seen()
        async with self._hub.listening(wake, CHANNEL_JOBS, CHANNEL_HOSTS):
            await self._reading(lambda: self._look(seen))
            surveyed.set()
            while True:
                messages = await self._reading(lambda: self._look(seen))
                for stream in list(self._streams):
                    mine = [data for owner, data in messages if owner is None or views.sees(stream.identity, owner)]
                    if mine:
                        stream.put(Batch(0, 0, b"".join(mine)))
                await _pause(wake, self._hub.poll_s)

    def _look(self, seen: _Seen) -> list[tuple[str | None, bytes]]:
        """What differs from what was seen, as (owner or None for everybody, message); the first look only remembers."""
        with self._database.read() as session:
            revs = jobs.revs(session, newer_than=seen.newest)
            changed = [job_id for job_id, rev in revs.items() if seen.revs.get(job_id) != rev] + [gone for gone in seen.revs if gone not in revs]
            rows = [] if seen.is_new else jobs.many(session, changed)
            messages: list[tuple[str | None, bytes]] = [
                (job.owner, changes.event("job", job.model_dump_json())) for job in views.many(session, rows)
            ]
            shown = {view.host.name: views.host(view) for view in hosts.all_hosts(session)}
        # A beat every few seconds is no change worth a message.
        states = {name: host.model_dump_json(exclude={"last_seen_at"}) for name, host in shown.items()}
        if not seen.is_new:
            messages += [
                (None, changes.event("host", shown[name].model_dump_json())) for name, state in states.items() if seen.hosts.get(name) != state
            ]
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
