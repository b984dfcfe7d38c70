"""What one API process holds from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass

from api.auth import Identities
from api.publisher import Hints
from api.streaming.connections import Streams
from api.streaming.db_threads import Reading
from api.streaming.fanout import JobFeeds, PlaneFeed
from api.streaming.subscriber import Hub
from api.submission.batch_writer import Writer
from api.submission.host_cache import KnownHosts
from store.db import Database
from store.settings import Settings

POOL_SIZE = 10


@dataclass(frozen=True)
class Plane:
    settings: Settings
    database: Database
    identities: Identities
    known_hosts: KnownHosts
    hints: Hints
    writer: Writer
    hub: Hub
    streams: Streams
    reading: Reading
    job_feeds: JobFeeds
    plane_feed: PlaneFeed


def assemble(settings: Settings) -> Plane:
    """Connects to nothing yet: each part does when it is first needed."""
    database = Database(settings.db_url, pool_size=POOL_SIZE)
    hints = Hints(settings.broker_url)
    hub = Hub(settings.broker_url)
    reading = Reading()
    return Plane(
        settings=settings,
        database=database,
        identities=Identities(database),
        known_hosts=KnownHosts(database),
        hints=hints,
        writer=Writer(database, hints),
        hub=hub,
        streams=Streams(database),
        reading=reading,
        job_feeds=JobFeeds(database, hub, reading),
        plane_feed=PlaneFeed(database, hub, reading),
    )


async def close(plane: Plane) -> None:
    plane.streams.end_all()
    await plane.job_feeds.close()
    await plane.plane_feed.close()
    await plane.hub.close()
    plane.writer.close()
    plane.hints.close()
    plane.database.dispose()
