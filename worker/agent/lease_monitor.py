"""Owns the judging of leases, in whichever worker holds the `sweep` role: a beat that stands still for the lease's length is over.

It compares no clocks: it watches, on its own, how long a beat has not changed. Where it could not watch for a while (the database was
away, this process was stopped), the watching starts again. Attempts of its own host every worker watches, role or not: it can end a
supervisor that is stuck.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from linux import proc
from store import attempts, hosts, leadership
from store.db import Database
from store.errors import LeaseLost
from store.settings import Settings
from store.states import ExitReason, HostStatus
from worker.supervisor import run_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """A beat, and the boot time at which it was first seen at this value."""

    beat: int
    since: float


@dataclass(frozen=True)
class Expired:
    """An attempt on another host that was closed because nobody renews its lease."""

    attempt_id: str
    job_id: str


class Sweeper:
    """Takes and keeps the role, and judges while it has it. One call of `sweep` a turn of the host loop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._seen: dict[str, Sighting] = {}
        self._role: Sighting | None = None
        self._looked_at: float | None = None
        self.has_role = False

    def sweep(self) -> list[Expired]:
        """Renew or try to take the role; with it, judge every host and the open attempts of all others.

        Attempts of this host are their recovery's business: `is_stuck` tells it which.
        """
        now = proc.boottime()
        if self._looked_at is None or now - self._looked_at > self._settings.lease_s / 2:
            self._seen, self._role = {}, None
        self._take_role(now)
        self._looked_at = now
        return self._judge(now)

    def is_stuck(self, key: str, beat: int) -> bool:
        """Whether an attempt, of any host, that is at `beat` now was seen at it for the lease's length."""
        seen = self._seen.get(key)
        if seen is None or seen.beat != beat:
            return False
        return proc.boottime() - seen.since >= self._settings.lease_s

    def leave(self) -> None:
        """Hand the role back, so that the next one need not wait for the lease's end."""
        with self._database.write() as session:
            leadership.give_back(session, leadership.SWEEP, holder=self._settings.host_name)

    def _take_role(self, now: float) -> None:
        stale = self._role is not None and now - self._role.since >= self._settings.lease_s
        try:
            with self._database.write() as session:
                lease = leadership.take(
                    session,
                    leadership.SWEEP,
                    holder=self._settings.host_name,
                    stale_beat=self._role.beat if stale and self._role else None,
                )
                self.has_role = lease.holder == self._settings.host_name
                self._role = _sight(self._role, lease.beat, now)
        except IntegrityError:
            self.has_role = False

    def _judge(self, now: float) -> list[Expired]:
        with self._database.read() as session:
            beats = attempts.beats(session, host=None if self.has_role else self._settings.host_name)
            views = hosts.all_hosts(session) if self.has_role else []
        self._seen = {key: _sight(self._seen.get(key), beat, now) for key, (_, _, beat) in beats.items()} | {
            f"host {view.host.name}": _sight(self._seen.get(f"host {view.host.name}"), view.host.beat, now)
            for view in views
        }
        for view in views:
            if view.host.status is not HostStatus.LOST and self.is_stuck(f"host {view.host.name}", view.host.beat):
                self._lose(view.host.name)
        return self._expire(beats)

    def _expire(self, beats: Mapping[str, tuple[str, str, int]]) -> list[Expired]:
        expired: list[Expired] = []
        for attempt_id, (job_id, host, beat) in beats.items():
            if host == self._settings.host_name or not self.is_stuck(attempt_id, beat):
                continue
            if not self._is_at_work(attempt_id) and self._close(attempt_id, job_id, host, beat):
                expired.append(Expired(attempt_id, job_id))
        return expired

    def _is_at_work(self, attempt_id: str) -> bool:
        """Whether a supervisor or a rank is seen on this machine, where every host of a local database is (worker/supervisor/fence.py)."""
        if not self._settings.is_local:
            return False
        with self._database.read() as session:
            attempt = attempts.get(session, attempt_id)
        run_dir = self._settings.run_dir(attempt.job_id, attempt.number)
        return run_lock.holder(run_dir) is not None or bool(proc.of_attempt(attempt_id))

    def _close(self, attempt_id: str, job_id: str, host: str, beat: int) -> bool:
        try:
            with self._database.write() as session:
                attempts.close(
                    session,
                    attempt_id,
                    job_id=job_id,
                    reason=ExitReason.LEASE_EXPIRED,
                    message=f"nobody on {host} has renewed its lease for {self._settings.lease_s:.0f} s",
                    devices_clean=False,
                    seen_beat=beat,
                    retry_s=self._settings.retry_s,
                )
        except LeaseLost:
            return False
        log.warning("attempt %s on %s: its lease has expired", attempt_id, host)
        return True

    def _lose(self, name: str) -> None:
        log.warning("host %s has not been heard for %.0f s", name, self._settings.lease_s)
        with self._database.write() as session:
            hosts.lose(session, name)


def _sight(seen: Sighting | None, beat: int, now: float) -> Sighting:
    return seen if seen is not None and seen.beat == beat else Sighting(beat, now)
