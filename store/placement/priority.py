"""In which order queued jobs are looked at: priority, then those that were promised a place, then fair share between owners, then age."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from store.placement.types import QueuedJob, RunningJob, Share

AGING_PER_HOUR: Final = 10.0
"""Points of priority that an hour in the queue is worth: a job at -10 stands with those at 0 after it, and never before them by age."""
CHARGE_S: Final = 3600.0
"""What a job that runs, or stands further ahead, counts for in its owner's share: an hour of its devices."""

NOBODY: Final = Share()


def levels(
    jobs: Iterable[QueuedJob], *, running: Iterable[RunningJob], owners: Mapping[str, Share]
) -> Iterator[tuple[int, list[QueuedJob]]]:
    """The levels of priority, highest first, each with its jobs in order."""
    jobs = list(jobs)
    priorities = sorted({job.priority for job in jobs})
    by_level: dict[int, list[QueuedJob]] = {}
    for job in jobs:
        risen = job.priority + AGING_PER_HOUR * job.waited_s / 3600
        level = job.priority if len(priorities) == 1 else priorities[bisect_right(priorities, risen) - 1]
        by_level.setdefault(level, []).append(job)
    charged = {name: share.used_device_s for name, share in owners.items()}
    for one in running:
        charged[one.owner] = charged.get(one.owner, 0.0) + len(one.device_indices) * CHARGE_S
    for level in sorted(by_level, reverse=True):
        promised = _promised(by_level[level], level)
        for job in promised:
            charged[job.owner] = charged.get(job.owner, 0.0) + job.num_devices * CHARGE_S
        yield level, [*promised, *_fairly((job for job in by_level[level] if not job.reservation), charged, owners)]


def _promised(jobs: Sequence[QueuedJob], level: int) -> list[QueuedJob]:
    """As they were promised; what has risen to this level since comes after what was promised within it."""
    found = [(one.level != level, one.number, job.id, job) for job in jobs if (one := job.reservation)]
    return [job for _, _, _, job in sorted(found, key=lambda one: one[:3])]


def _fairly(jobs: Iterable[QueuedJob], charged: dict[str, float], owners: Mapping[str, Share]) -> list[QueuedJob]:
    """Always the oldest job of the owner who has had least for their weight. Counts what it orders into `charged`."""
    lines: dict[str, list[QueuedJob]] = {}
    for job in jobs:
        lines.setdefault(job.owner, []).append(job)
    heap: list[tuple[float, float, str, str]] = []

    def line_up(owner: str) -> None:
        head = lines[owner][-1]
        share = charged.get(owner, 0.0) / owners.get(owner, NOBODY).weight
        heapq.heappush(heap, (share, -head.waited_s, head.id, owner))

    for owner, line in lines.items():
        line.sort(key=lambda job: (-job.waited_s, job.id))
        line.reverse()
        line_up(owner)
    ordered: list[QueuedJob] = []
    while heap:
        owner = heapq.heappop(heap)[3]
        job = lines[owner].pop()
        ordered.append(job)
        charged[owner] = charged.get(owner, 0.0) + job.num_devices * CHARGE_S
        if lines[owner]:
            line_up(owner)
    return ordered
