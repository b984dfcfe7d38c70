"""How many devices each owner may hold at once, as one pass goes on."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from itertools import takewhile
from math import inf

from store.placement.priority import NOBODY
from store.placement.types import QueuedJob, RunningJob, Share


class Quotas:
    """Counts what owners hold, and what was promised to their jobs that are blocked: later ones of theirs must not take that away."""

    def __init__(self, owners: Mapping[str, Share], running: Iterable[RunningJob]) -> None:
        self._owners = owners
        self._held: dict[str, int] = {}
        self._ends: dict[str, list[tuple[float, int]]] = {}
        self._promised: dict[str, dict[str, tuple[int, float]]] = {}
        for job in running:
            self._held[job.owner] = self._held.get(job.owner, 0) + len(job.device_indices)
            left_s = inf if job.left_s is None else job.left_s
            self._ends.setdefault(job.owner, []).append((left_s, len(job.device_indices)))

    def limit(self, job: QueuedJob) -> int | None:
        return self._owners.get(job.owner, NOBODY).max_devices

    def held(self, job: QueuedJob) -> int:
        return self._held.get(job.owner, 0)

    def allows(self, job: QueuedJob) -> bool:
        """Whether it may start now, as far as its owner's own limit goes."""
        limit = self.limit(job)
        if limit is None:
            return True
        if self.held(job) + job.num_devices > limit:
            return False
        return self.may_be_promised(job) or (
            job.at_most_s is not None and all(job.at_most_s <= start for _, start in self._promised_before(job))
        )

    def may_be_promised(self, job: QueuedJob) -> bool:
        """Whether there is room for it beside all that its owner was promised before."""
        limit = self.limit(job)
        promised = sum(count for count, _ in self._promised_before(job))
        return limit is None or self.held(job) + job.num_devices + promised <= limit

    def opens_in_s(self, job: QueuedJob) -> float:
        """When its owner's running jobs leave room for it; infinite where that is not known, or never."""
        limit, held = self.limit(job), self.held(job)
        if limit is None or held + job.num_devices <= limit:
            return 0.0
        for left_s, count in sorted(self._ends.get(job.owner, [])):
            held -= count
            if held + job.num_devices <= limit:
                return left_s
        return inf

    def take(self, job: QueuedJob) -> None:
        """It starts now."""
        self._held[job.owner] = self.held(job) + job.num_devices
        self._ends.setdefault(job.owner, []).append((job.length_s, job.num_devices))
        self._promised.get(job.owner, {}).pop(job.id, None)

    def promise(self, job: QueuedJob, start_s: float) -> None:
        """It is blocked, and starts then: what its owner may hold is kept for it."""
        limit = self.limit(job)
        if limit is not None and job.num_devices <= limit:
            self._promised.setdefault(job.owner, {})[job.id] = (job.num_devices, start_s if start_s < inf else 0.0)

    def has_promised(self, job: QueuedJob) -> bool:
        return bool(self._promised.get(job.owner))

    def queue_up(self, job: QueuedJob, from_s: float) -> float:
        """For estimates, once all is placed: the soonest from `from_s` that the limit allows it; it counts as held from then on."""
        limit = self.limit(job)
        if limit is None:
            return from_s
        if job.num_devices > limit:
            return inf
        ends = self._ends.setdefault(job.owner, [])
        heapq.heapify(ends)
        held, start = self.held(job), from_s
        while ends and (ends[0][0] <= start or held + job.num_devices > limit):
            end, count = heapq.heappop(ends)
            held, start = held - count, max(start, end)
        self._held[job.owner] = held + job.num_devices
        heapq.heappush(ends, (start + job.length_s, job.num_devices))
        return start

    def _promised_before(self, job: QueuedJob) -> list[tuple[int, float]]:
        promised = self._promised.get(job.owner, {}).items()
        return [one for _, one in takewhile(lambda item: item[0] != job.id, promised)]
