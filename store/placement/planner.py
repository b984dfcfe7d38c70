"""One pass: in order, each job is placed, or gets devices kept for it, or waits; and is told why and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from store.placement import preemption, priority, topology, wait_reasons
from store.placement.fleet import Fleet, Spot
from store.placement.preemption import Evictions
from store.placement.quota import Quotas
from store.placement.types import HostCapacity, Placement, Plan, Preemption, QueuedJob, Reservation, RunningJob, Share
from store.placement.wait_reasons import Blocked

HOSTS_PER_RESERVATION: Final = 8
"""One reservation a device type, and one more for every so many hosts that serve it: each keeps devices from jobs of unknown length."""
MOST_RESERVED: Final = 64
TELL: Final = 200
"""So many of the jobs that wait are told why and until when."""
WORTH_MOVING_S: Final = 60.0
"""A promise moves to other devices where it comes true sooner by this, and by a tenth of the wait."""


def plan(
    jobs: Iterable[QueuedJob],
    hosts: Iterable[HostCapacity],
    *,
    running: Iterable[RunningJob] = (),
    owners: Mapping[str, Share] | None = None,
    tell: int = TELL,
) -> Plan:
    """Who starts where now, who must make room, and why the others wait. The order in which things are given does not matter.

    Running jobs on hosts that are not given count for their owners.
    """
    jobs, owners = list(jobs), owners or {}
    running = sorted(running, key=lambda job: job.id)
    numbers = [job.reservation.number for job in jobs if job.reservation]
    fleet, quotas = Fleet(hosts, running), Quotas(owners, running)
    one = _Pass(fleet, quotas, Evictions(fleet), next_number=max(numbers, default=0) + 1)
    for level, queue in priority.levels(jobs, running=running, owners=owners):
        one.take(level, queue)
    told = wait_reasons.tell(one.blocked, fleet, quotas, num_told=tell)
    return Plan(one.placements, one.preemptions, told)


@dataclass
class _Pass:
    fleet: Fleet
    quotas: Quotas
    evictions: Evictions
    next_number: int
    placements: list[Placement] = field(default_factory=list[Placement])
    preemptions: list[Preemption] = field(default_factory=list[Preemption])
    blocked: list[Blocked] = field(default_factory=list[Blocked])
    num_reserved: dict[str, int] = field(default_factory=dict[str, int])
    level: int = 0

    def take(self, level: int, queue: Sequence[QueuedJob]) -> None:
        """What was promised within the level stands before anything of it is placed; what lower levels were promised does not count yet."""
        self.level = level
        kept = {job.id: spot for job in queue if job.reservation and (spot := self._keep(job, job.reservation))}
        for job in queue:
            self._consider(job, kept.get(job.id))

    def _keep(self, job: QueuedJob, reservation: Reservation) -> Spot | None:
        """The devices that were promised; None where they can no longer be had."""
        host = self.fleet.by_name.get(reservation.host)
        devices = topology.mask_of(reservation.device_indices)
        if host is None or not host.serves(job.device_type) or devices & ~host.usable:
            return None
        spot = Spot(host.start_of(devices), host, devices)
        self._reserve(job, spot)
        return spot

    def _consider(self, job: QueuedJob, kept: Spot | None) -> None:
        if not self.quotas.allows(job):
            self._hold_back(job, kept)
            return
        spot = self._start(job, kept)
        if spot is None:
            self._wait_for_room(job, kept)
            return
        if kept is not None:
            self.fleet.give_up(job, kept.host)
        self.fleet.place(job, spot)
        self.quotas.take(job)
        self.placements.append(Placement(job.id, spot.host.name, topology.indices_of(spot.devices)))

    def _start(self, job: QueuedJob, kept: Spot | None) -> Spot | None:
        if kept is not None and kept.devices & ~kept.host.open_to(job) == 0:
            return kept
        return self.fleet.find(job)

    def _hold_back(self, job: QueuedJob, kept: Spot | None) -> None:
        """Its owner holds too much: its turn among its owner's jobs is kept, but devices only where that is over in time."""
        opens_in_s = self.quotas.opens_in_s(job)
        if kept is not None and opens_in_s <= kept.start_s + 1 < inf:
            self.blocked.append(Blocked(job, kept, self._promise(job, kept, is_new=False), is_over_quota=True))
            return
        if kept is not None:
            self.fleet.give_up(job, kept.host)
        if not self.quotas.has_promised(job):
            self.quotas.promise(job, opens_in_s)
        self.blocked.append(Blocked(job, is_over_quota=True))

    def _wait_for_room(self, job: QueuedJob, kept: Spot | None) -> None:
        spot, soonest = kept, self.fleet.soonest(job)
        if kept is None or (soonest is not None and _is_worth_moving(kept, soonest)):
            spot = soonest
        if spot is None:
            self.blocked.append(Blocked(job))
            return
        num_stopping = 0
        if spot.start_s > preemption.WORTH_S and (eviction := self.evictions.evict(job)) is not None:
            num_stopping, spot = len(eviction.victims), eviction.spot
            self.preemptions += [Preemption(one.id, job.id) for one in eviction.victims]
        if spot is not kept:
            if kept is not None:
                self.fleet.give_up(job, kept.host)
            elif not num_stopping and job.reservation is None and not self._may_reserve(job):
                self.blocked.append(Blocked(job))
                return
            self._reserve(job, spot)
        promise = self._promise(job, spot, is_new=spot is not kept)
        self.blocked.append(Blocked(job, spot, promise, num_stopping=num_stopping))

    def _may_reserve(self, job: QueuedJob) -> bool:
        if not self.quotas.may_be_promised(job):
            return False
        num_hosts = len(self.fleet.serving(job.device_type))
        most = min(MOST_RESERVED, 1 + num_hosts // HOSTS_PER_RESERVATION)
        return self.num_reserved.get(job.device_type, 0) < most

    def _reserve(self, job: QueuedJob, spot: Spot) -> None:
        self.fleet.claim(job, spot)
        self.quotas.promise(job, spot.start_s)
        self.num_reserved[job.device_type] = self.num_reserved.get(job.device_type, 0) + 1

    def _promise(self, job: QueuedJob, spot: Spot, *, is_new: bool) -> Reservation:
        """One that is new here, or moves, comes after those that there are: it was made so that it delays none of them."""
        old = job.reservation
        if old is not None and not is_new and old.level == self.level:
            return old
        number, self.next_number = self.next_number, self.next_number + 1
        return Reservation(self.level, number, spot.host.name, topology.indices_of(spot.devices))


def _is_worth_moving(kept: Spot, other: Spot) -> bool:
    if kept.start_s == inf:
        return other.start_s < inf
    return other.start_s < kept.start_s - max(WORTH_MOVING_S, kept.start_s / 10)
