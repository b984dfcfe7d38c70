"""Who has to make room: low jobs, for a high one that would wait otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from store.placement import topology
from store.placement.fleet import Fleet, Host, Spot
from store.placement.types import QueuedJob, RunningJob

HIGH: Final = 100
"""Jobs of this priority and above may have lower ones stopped; those below 0 may be stopped; all others neither stop nor are stopped."""
WORTH_S: Final = 60.0
"""A high job that starts sooner anyway stops nobody."""
STOP_S: Final = 30.0
"""How long a job that was asked to stop is expected to need for its checkpoint."""
MOST_EVICTING: Final = 8
"""So many jobs of one pass may have others stopped."""


class Eviction(NamedTuple):
    victims: tuple[RunningJob, ...]
    spot: Spot


class Evictions:
    """The low jobs of each host, as one pass has them stopped."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._low = {
            host: low
            for host in fleet.hosts
            if (low := [job for job in fleet.running.get(host.name, ()) if job.priority < 0 and not job.is_stopping])
        }
        self._num_left = MOST_EVICTING
        self._vain: set[tuple[str, int]] = set()

    def evict(self, job: QueuedJob) -> Eviction | None:
        """Of one host the fewest low jobs, the shortest there first, without which a high one could start; they are asked to stop."""
        wanted = (job.device_type, job.num_devices)
        if job.priority < HIGH or self._num_left == 0 or wanted in self._vain:
            return None
        options = [
            one for host, low in self._low.items() if host.serves(job.device_type) and (one := _on(host, job, low))
        ]
        best = min(options, key=_harm, default=None)
        if best is None:
            self._vain.add(wanted)
            return None
        self._num_left -= 1
        host = best.spot.host
        self._low[host] = [one for one in self._low[host] if one not in best.victims]
        host.hold(replace(one, left_s=STOP_S) for one in best.victims)
        self._fleet.look_again(host)
        return best


def _harm(eviction: Eviction) -> tuple[int, float, int]:
    lost_s = sum(job.held_s * len(job.device_indices) for job in eviction.victims)
    return len(eviction.victims), lost_s, eviction.spot.host.rank


def _on(host: Host, job: QueuedJob, low: Sequence[RunningJob]) -> Eviction | None:
    room = topology.mask_of(index for index, at in host.ready_at.items() if at <= STOP_S)
    for number, one in enumerate(by_loss := sorted(low, key=lambda one: (one.held_s, one.id)), start=1):
        room |= topology.mask_of(one.device_indices)
        found = topology.fit(room & host.unclaimed(job.id), job.num_devices, host.group)
        if found is not None:
            victims = [one for one in by_loss[:number] if topology.mask_of(one.device_indices) & found.devices]
            return Eviction(tuple(victims), Spot(STOP_S, host, found.devices))
    return None
