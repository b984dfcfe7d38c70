"""What one API process holds from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass

from api.auth import Identities
from api.feeds import JobFeeds, PlaneFeed
from api.hints import Hints
from api.hosts import KnownHosts
from api.hub import Hub
from api.reading import Reading
from api.streams import Streams
from api.writer import Writer
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
