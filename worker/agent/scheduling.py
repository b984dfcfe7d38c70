"""Owns a planning pass: read what waits and what is free, plan with no transaction open, place each job in one of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from store import attempts, jobs, planning_queue, usage
from store.db import Database, now
from store.errors import NotFound, PlacementConflict
from store.placement import planner
from store.placement.types import Placement, Preemption, Reservation, Wait
from store.planning_queue import Situation, Waiting
from store.states import Intent
from store.usage import Usage

TELL_FIRST: Final = 200
"""Of the waiting jobs, so many learn their reason: nobody reads the others', and each costs a write."""
SHOW_FIRST: Final = 20
"""So many learn at once when they have moved up; the others see it when they look."""
TOLD_TOGETHER: Final = 50
"""In one transaction: each pays for the disk, and a longer one would keep supervisors waiting."""
USAGE_EVERY_S: Final = 60.0
MINUTE_S: Final = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placed:
    attempt_id: str
    job_id: str
    host: str


@dataclass(frozen=True)
class Pass:
    """What a pass did. `asked` are the running jobs that were asked to make room; `told` those whose wait looks different now;
    `again_in_s` is when a held-back retry falls due."""

    placed: Sequence[Placed]
    asked: Sequence[str]
    told: Sequence[str]
    again_in_s: float | None


class Planner:
    """Between passes it remembers since when it has seen a retry waiting, by its own clock, as no two are ever compared; and what
    owners had lately, for a minute."""

    def __init__(
        self, database: Database, *, quotas: Mapping[str, int] | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        self._database, self._quotas, self._weights = database, quotas or {}, weights or {}
        self._seen: dict[tuple[str, int], float] = {}
        self._usage, self._usage_until = Usage(), 0.0

    def run(self) -> Pass:
        situation, order = self._read()
        delays = self._hold_back(situation.waiting)
        held = delays.keys() | situation.unsettled.keys()
        plan = planner.plan(
            [one.job for one in situation.waiting if one.job.id not in held],
            situation.hosts,
            running=situation.running,
            owners=situation.shares(self._usage, quotas=self._quotas, weights=self._weights),
            tell=TELL_FIRST,
        )
        placed = [one for wish in plan.placements if (one := self._place(wish))]
        asked = [one.job_id for one in plan.preemptions if self._ask_to_stop(one)]
        late = [one for one in situation.waiting if one.job.id in held]
        waits = [*plan.waits, *_waits_of(late, delays, situation.unsettled, after=len(plan.waits))]
        told = self._tell(waits, {one.job.id: one for one in situation.waiting}, order)
        return Pass(placed, asked, told, min(delays.values(), default=None))

    def _read(self) -> tuple[Situation, bytes]:
        with self._database.read() as session:
            situation = planning_queue.read(session, self._usage)
            # One job alone has nobody to share with, and is not kept waiting for this.
            if len(situation.waiting) > 1 and time.monotonic() >= self._usage_until:
                self._usage, self._usage_until = usage.recent(session), time.monotonic() + USAGE_EVERY_S
                situation = planning_queue.read(session, self._usage)
            return situation, planning_queue.order(session) if situation.waiting else b""

    def _hold_back(self, waiting: Sequence[Waiting]) -> dict[str, float]:
        """Those whose delay after a failure is not over, with the seconds that are left."""
        at = time.monotonic()
        delayed = {(one.job.id, one.num_attempts): one.retry_delay_s for one in waiting if one.retry_delay_s > 0}
        self._seen = {key: self._seen.get(key, at) for key in delayed}
        left_s = {key[0]: self._seen[key] + delay_s - at for key, delay_s in delayed.items()}
        return {job_id: left for job_id, left in left_s.items() if left > 0}

    def _place(self, wish: Placement) -> Placed | None:
        try:
            with self._database.write() as session:
                attempt = attempts.place(session, wish.job_id, host=wish.host, device_indices=wish.device_indices)
        except (PlacementConflict, NotFound) as error:
            log.info("not placed: %s", error)
            return None
        return Placed(attempt.id, wish.job_id, wish.host)

    def _ask_to_stop(self, wish: Preemption) -> bool:
        try:
            with self._database.write() as session:
                job = jobs.preempt(session, wish.job_id, why="a job of high priority needs its devices")
        except NotFound:
            return False
        return job.intent is Intent.PREEMPT

    def _tell(self, waits: Sequence[Wait], known: Mapping[str, Waiting], order: bytes) -> list[str]:
        """Write what has changed. Answers the jobs that look different now."""
        planned = planning_queue.encode(wait.job_id for wait in waits)
        news = list(_news(waits, known))
        moved = {
            wait.job_id for wait in waits[:SHOW_FIRST] if not planning_queue.is_at(order, wait.position, wait.job_id)
        }
        moved -= {one.job_id for one in news}
        told: list[str] = []
        for start in range(0, max(len(news), planned != order), TOLD_TOGETHER):
            with self._database.write() as session:
                if start == 0 and planned != order:
                    planning_queue.keep_order(session, planned)
                    told += jobs.touch_together(session, moved)
                # By id, so that two planners never wait for each other's rows crosswise.
                for one in sorted(news[start:][:TOLD_TOGETHER], key=lambda one: one.job_id):
                    told += _write(session, one)
        return told


@dataclass(frozen=True)
class News:
    """What a waiting job is told."""

    job_id: str
    reason: str | None
    estimated_start_at: datetime | None
    reservation: Reservation | None


def _waits_of(
    late: Sequence[Waiting], delays: Mapping[str, float], unsettled: Mapping[str, str], *, after: int
) -> list[Wait]:
    """Of those that may not start yet whatever is free: behind all others, the soonest first."""
    in_order = sorted(late, key=lambda one: (one.job.id in unsettled, delays.get(one.job.id, 0.0), one.job.id))
    return [
        Wait(one.job.id, number, f"{unsettled[one.job.id]} is still ending what its last try left there", None)
        if one.job.id in unsettled
        else Wait(
            one.job.id,
            number,
            f"try {one.num_attempts + 1} starts {one.retry_delay_s:.0f} s after the last one failed",
            delays[one.job.id],
        )
        for number, one in enumerate(in_order, start=after + 1)
    ]


def _news(waits: Sequence[Wait], known: Mapping[str, Waiting]) -> Iterator[News]:
    at = now()
    for wait in waits:
        before = known[wait.job_id]
        old = News(wait.job_id, before.reason, before.estimated_start_at, before.job.reservation)
        new = replace(old, reservation=wait.reservation)
        if wait.position <= TELL_FIRST:
            start_at = _estimate(at, wait.starts_in_s, before.estimated_start_at)
            new = replace(new, reason=wait.reason, estimated_start_at=start_at)
        if new != old:
            yield new


def _estimate(at: datetime, starts_in_s: float | None, before: datetime | None) -> datetime | None:
    """The one that was told, as long as it is about right: else each pass would write each job anew."""
    if starts_in_s is None:
        return None
    start_at = at + timedelta(seconds=starts_in_s)
    slack_s = max(MINUTE_S, starts_in_s / 10)
    return before if before is not None and abs((start_at - before).total_seconds()) <= slack_s else start_at


def _write(session: Session, one: News) -> list[str]:
    try:
        reservation = planning_queue.store_reservation(one.reservation)
        is_told = jobs.set_wait(
            session,
            one.job_id,
            reason=one.reason,
            estimated_start_at=one.estimated_start_at,
            reservation=reservation,
        )
    except NotFound:
        return []
    return [one.job_id] if is_told else []
