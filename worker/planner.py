"""Owns a planning pass: read what waits and what is free, plan with no transaction open, place each job in one of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from store import attempts, hosts, jobs, placement
from store.db import Database
from store.errors import NotFound, PlacementConflict
from store.hosts import HostView
from store.models import Job
from store.placement import QueuedJob, Wait
from store.states import HostStatus

TELL_FIRST: Final = 200
"""Of the waiting jobs, so many learn their position and reason: nobody reads the others', and each costs a write."""
TOLD_TOGETHER: Final = 50
"""In one transaction: each pays for the disk, and a longer one would keep supervisors waiting."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placed:
    attempt_id: str
    job_id: str
    host: str


@dataclass(frozen=True)
class Pass:
    """What a pass did. `told` are the jobs whose wait it wrote; `again_in_s` is when a held-back retry falls due."""

    placed: Sequence[Placed]
    told: Sequence[str]
    again_in_s: float | None


class Planner:
    """Between passes it remembers only since when it has seen a retry waiting: by its own clock, as no two are ever compared."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[tuple[str, int], float] = {}

    def run(self) -> Pass:
        queue, views = self._read()
        ready, held = self._hold_back(queue)
        online = [view.capacity for view in views if view.host.status is HostStatus.ONLINE]
        plan = placement.plan(
            [QueuedJob(job.id, job.num_devices, job.device_type, job.owner, job.priority) for job in ready], online
        )
        placed = [one for wish in plan.placements if (one := self._place(wish))]
        waits = [*plan.waits, *self._waits_of(held, after=len(plan.waits))]
        known = {job.id: (job.position, job.wait_reason) for job in queue}
        news = [
            wait for wait in waits[:TELL_FIRST] if wait.reason and known[wait.job_id] != (wait.position, wait.reason)
        ]
        told = [
            job_id
            for start in range(0, len(news), TOLD_TOGETHER)
            for job_id in self._tell(news[start:][:TOLD_TOGETHER])
        ]
        return Pass(placed, told, min((left_s for _, left_s in held), default=None))

    def _read(self) -> tuple[Sequence[Job], Sequence[HostView]]:
        with self._database.read() as session:
            queue = jobs.queued(session)
            return queue, hosts.all_hosts(session) if queue else []

    def _hold_back(self, queue: Sequence[Job]) -> tuple[list[Job], list[tuple[Job, float]]]:
        """Those that may start, and those whose delay after a failure is not over, with the seconds that are left."""
        now = time.monotonic()
        waiting = {(job.id, job.num_attempts) for job in queue if job.retry_delay_s > 0}
        self._seen = {key: self._seen.get(key, now) for key in waiting}
        left_s = {
            job.id: self._seen[job.id, job.num_attempts] + job.retry_delay_s - now
            for job in queue
            if job.retry_delay_s > 0
        }
        ready = [job for job in queue if left_s.get(job.id, 0.0) <= 0]
        return ready, [(job, left_s[job.id]) for job in queue if left_s.get(job.id, 0.0) > 0]

    def _waits_of(self, held: Sequence[tuple[Job, float]], *, after: int) -> list[Wait]:
        return [
            Wait(
                job.id,
                after + number,
                f"try {job.num_attempts + 1} starts {job.retry_delay_s:.0f} s after the last one failed",
            )
            for number, (job, _) in enumerate(held, start=1)
        ]

    def _place(self, wish: placement.Placement) -> Placed | None:
        try:
            with self._database.write() as session:
                attempt = attempts.place(session, wish.job_id, host=wish.host, device_indices=wish.device_indices)
        except (PlacementConflict, NotFound) as error:
            log.info("not placed: %s", error)
            return None
        return Placed(attempt.id, wish.job_id, wish.host)

    def _tell(self, waits: Sequence[Wait]) -> list[str]:
        """Those of the jobs whose wait was written. By id, so that two planners never wait for each other's rows crosswise."""
        told: list[str] = []
        with self._database.write() as session:
            for wait in sorted(waits, key=lambda wait: wait.job_id):
                try:
                    if jobs.set_wait(session, wait.job_id, position=wait.position, reason=wait.reason or ""):
                        told.append(wait.job_id)
                except NotFound:
                    continue
        return told
