"""The hosts as one pass fills them: what is free, what is kept for whom, and when a host could take how many."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

from store.placement import topology
from store.placement.types import ANY, HostCapacity, QueuedJob, RunningJob

TYPES: Final = ("npu", "cuda", "cpu")
"""A job of any type takes an accelerator where it can."""

Key = tuple[float, tuple[int, ...], int]


class Spot(NamedTuple):
    """Devices of one host (a mask), and when they are there for a job: infinite where nobody knows."""

    start_s: float
    host: Host
    devices: int


class Claim(NamedTuple):
    """Devices that are kept for a blocked job from `start_s` to `end_s`."""

    devices: int
    start_s: float
    end_s: float


class Host:
    """One host during one pass. `ready_at` tells when each device is done with what it does, `next_at` with its claims as well."""

    __slots__ = ("capacity", "claims", "free", "group", "name", "next_at", "rank", "ready_at", "usable", "version")

    def __init__(self, rank: int, capacity: HostCapacity) -> None:
        self.rank, self.capacity, self.name, self.group = rank, capacity, capacity.name, capacity.group
        self.usable, self.free = topology.mask_of(capacity.usable), topology.mask_of(capacity.free)
        self.ready_at = dict.fromkeys(capacity.usable, inf) | dict.fromkeys(capacity.free, 0.0)
        self.next_at = self.ready_at.copy()
        self.claims: dict[str, Claim] = {}
        self.version = 0

    def serves(self, device_type: str) -> bool:
        return device_type == ANY or device_type in self.capacity.serves

    def open_to(self, job: QueuedJob) -> int:
        """The free devices it may take now: none that is kept for another, unless it will have ended by then."""
        devices = self.free
        for job_id, claim in self.claims.items():
            is_over_by_then = job.at_most_s is not None and job.at_most_s <= claim.start_s < inf
            if job_id != job.id and not is_over_by_then:
                devices &= ~claim.devices
        return devices

    def unclaimed(self, job_id: str) -> int:
        """The usable devices that are kept for nobody else."""
        devices = self.usable
        for other, claim in self.claims.items():
            if other != job_id:
                devices &= ~claim.devices
        return devices

    def hold(self, running: Iterable[RunningJob]) -> None:
        for job in running:
            left_s = inf if job.left_s is None else max(job.left_s, 0.0)
            self.ready_at.update((index, left_s) for index in job.device_indices if index in self.ready_at)
        self._reckon()

    def busy(self, devices: int, *, until_s: float) -> None:
        """They are held until then. Their claims stand."""
        for index in topology.indices_of(devices):
            self.ready_at[index] = until_s
        self._reckon()

    def start_of(self, devices: int) -> float:
        """When all of them are there, after what was claimed before."""
        return max(self.next_at[index] for index in topology.indices_of(devices))

    def claim(self, job: QueuedJob, spot: Spot) -> None:
        one = self.claims[job.id] = Claim(spot.devices, spot.start_s, spot.start_s + job.length_s)
        for index in topology.indices_of(one.devices):
            self.next_at[index] = max(self.next_at[index], one.end_s)
        self.version += 1

    def give_up(self, job_id: str) -> None:
        del self.claims[job_id]
        self._reckon()

    def soonest(self, count: int) -> tuple[Key, Spot] | None:
        """Where and when it could take so many next, after all that is placed and claimed; with a key by which hosts compare.

        None where it never could.
        """
        by_time: dict[float, int] = {}
        for index, at in self.next_at.items():
            by_time[at] = by_time.get(at, 0) | 1 << index
        devices = 0
        for at in sorted(by_time):
            devices |= by_time[at]
            if at < inf and devices.bit_count() >= count and (found := topology.fit(devices, count, self.group)):
                return (at, found.cost, self.rank), Spot(at, self, found.devices)
        near = topology.soonest(((at, index) for index, at in self.next_at.items()), count, self.group)
        if near is None:
            return None
        times, chosen = near
        return (inf, (sum(at == inf for at in times),), self.rank), Spot(inf, self, chosen)

    def _reckon(self) -> None:
        self.next_at = self.ready_at.copy()
        for claim in self.claims.values():
            for index in topology.indices_of(claim.devices):
                self.next_at[index] = max(self.next_at[index], claim.end_s)
        self.version += 1


class Fleet:
    """All hosts of a pass but the drained ones, which only words are about. Hosts that look alike, with the same devices free, are kept
    together: a search looks at each kind once."""

    def __init__(self, hosts: Iterable[HostCapacity], running: Iterable[RunningJob]) -> None:
        given = sorted(hosts, key=lambda one: one.name)
        self.drained = [one for one in given if one.is_drained]
        self.hosts = [Host(rank, one) for rank, one in enumerate(one for one in given if not one.is_drained)]
        self.by_name = {host.name: host for host in self.hosts}
        self.running: dict[str, list[RunningJob]] = {}
        for job in running:
            self.running.setdefault(job.host, []).append(job)
        for name, jobs in self.running.items():
            if name in self.by_name:
                self.by_name[name].hold(jobs)
        self._serving: dict[str, list[Host]] = {}
        self._claimants: set[str] = set()
        self._alike: dict[tuple[frozenset[str], int], dict[int, list[int]]] = {}
        self._claimed: dict[int, Host] = {}
        self._spots: dict[tuple[str, int], list[tuple[Key, int, Spot]]] = {}
        self._vain: dict[tuple[str, int], float] = {}
        for host in self.hosts:
            self._shelve(host)

    def find(self, job: QueuedJob) -> Spot | None:
        """The best devices that it may take now."""
        length_s = inf if job.at_most_s is None else job.at_most_s
        wanted = (job.device_type, job.num_devices)
        if job.id not in self._claimants and wanted in self._vain and length_s >= self._vain[wanted]:
            return None
        best = self._best_claimed(job, self._best_alike(job, None))
        if best is None:
            self._vain[wanted] = min(length_s, self._vain.get(wanted, inf))
            return None
        return best[1]

    def place(self, job: QueuedJob, spot: Spot) -> None:
        host = spot.host
        assert spot.devices & ~host.free == 0, "a device was given out twice"
        host.free &= ~spot.devices
        host.busy(spot.devices, until_s=job.length_s)
        self._shelve(host)

    def soonest(self, job: QueuedJob) -> Spot | None:
        """Where it could start next after all that is placed and claimed; None where no host could ever take it."""
        wanted = (job.device_type, job.num_devices)
        spots = self._spots.get(wanted)
        if spots is None:
            spots = self._spots[wanted] = [
                (found[0], host.version, found[1])
                for host in self.serving(job.device_type)
                if (found := host.soonest(job.num_devices))
            ]
            heapq.heapify(spots)
        while spots:
            _, version, spot = spots[0]
            if version == spot.host.version:
                return spot
            # Hosts only get fuller during a pass: what is looked at again never moves to the front.
            found = spot.host.soonest(job.num_devices)
            assert found is not None
            heapq.heapreplace(spots, (found[0], spot.host.version, found[1]))
        return None

    def claim(self, job: QueuedJob, spot: Spot) -> None:
        spot.host.claim(job, spot)
        self._claimed[spot.host.rank] = spot.host
        self._claimants.add(job.id)

    def give_up(self, job: QueuedJob, host: Host) -> None:
        """Its devices are open again, so what was not found before may be now."""
        host.give_up(job.id)
        self._claimants.discard(job.id)
        self._vain.clear()
        self.look_again(host)
        self._shelve(host)

    def look_again(self, host: Host) -> None:
        """It can take something sooner than was seen."""
        for (device_type, count), spots in self._spots.items():
            if host.serves(device_type) and (found := host.soonest(count)):
                heapq.heappush(spots, (found[0], host.version, found[1]))

    def serving(self, device_type: str) -> Sequence[Host]:
        known = self._serving.get(device_type)
        if known is None:
            known = self._serving[device_type] = [host for host in self.hosts if host.serves(device_type)]
        return known

    def _shelve(self, host: Host) -> None:
        if host.claims:
            self._claimed[host.rank] = host
            return
        self._claimed.pop(host.rank, None)
        if host.free:
            kind = self._alike.setdefault((host.capacity.serves, host.group), {})
            heapq.heappush(kind.setdefault(host.free, []), host.rank)

    def _best_alike(self, job: QueuedJob, best: tuple[Key, Spot] | None) -> tuple[Key, Spot] | None:
        for (serves, group), shelves in self._alike.items():
            if job.device_type != ANY and job.device_type not in serves:
                continue
            preference = _preference(serves)
            for free in list(shelves):
                found = topology.fit(free, job.num_devices, group)
                if found is None or (best is not None and (preference, found.cost) > best[0][:2]):
                    continue
                host = self._first(shelves, free)
                if host is not None and (best is None or (preference, found.cost, host.rank) < best[0]):
                    best = (preference, found.cost, host.rank), Spot(0.0, host, found.devices)
        return best

    def _best_claimed(self, job: QueuedJob, best: tuple[Key, Spot] | None) -> tuple[Key, Spot] | None:
        for host in self._claimed.values():
            if not host.serves(job.device_type):
                continue
            found = topology.fit(host.open_to(job), job.num_devices, host.group)
            if found is not None:
                key = (_preference(host.capacity.serves), found.cost, host.rank)
                if best is None or key < best[0]:
                    best = key, Spot(0.0, host, found.devices)
        return best

    def _first(self, shelves: dict[int, list[int]], free: int) -> Host | None:
        """The first host of those that have exactly these devices free; what has changed since it was put there is thrown out."""
        ranks = shelves[free]
        while ranks:
            host = self.hosts[ranks[0]]
            if host.free == free and not host.claims:
                return host
            heapq.heappop(ranks)
        del shelves[free]
        return None


def _preference(serves: frozenset[str]) -> int:
    return min((TYPES.index(kind) for kind in serves if kind in TYPES), default=len(TYPES))
