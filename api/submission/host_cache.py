"""The hosts as submissions see them: read again after a second, so that a burst of them does not read the same rows each time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from store import hosts
from store.db import Database
from store.hosts import HostView

REMEMBER_S: Final = 1.0


class KnownHosts:
    """Safe from several threads. For what rarely changes of a host, its kinds and numbers of devices: who refuses asks `now` first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: tuple[float, Sequence[HostView]] = (0.0, ())

    def recently(self) -> Sequence[HostView]:
        """As they were within the last second; that there are none is never remembered."""
        read_at, views = self._seen
        return views if views and time.monotonic() - read_at < REMEMBER_S else self.now()

    def now(self) -> Sequence[HostView]:
        read_at = time.monotonic()
        with self._database.read() as session:
            views = hosts.all_hosts(session)
        self._seen = read_at, views
        return views
