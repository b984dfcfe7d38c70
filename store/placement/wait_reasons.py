"""Why a job waits, in words, and when it may start: the waiting jobs queued up, in their order, behind what runs and what is promised."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final

from store.placement import topology
from store.placement.fleet import Fleet, Host, Spot
from store.placement.quota import Quotas
from store.placement.types import ANY, QueuedJob, Reservation, Wait

STEPS_MIN: Final = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 90, *range(120, 361, 30), *range(420, 2881, 60))
"""What "about" is rounded up to, so that a sentence is not written anew every second; beyond, whole days."""


AHEAD: Final = ", kept for jobs ahead"


@dataclass(frozen=True, slots=True)
class Blocked:
    """A job that did not start. `spot` is what is kept for it; `num_stopping` jobs make room for it."""

    job: QueuedJob
    spot: Spot | None = None
    reservation: Reservation | None = None
    is_over_quota: bool = False
    num_stopping: int = 0


def tell(blocked: Sequence[Blocked], fleet: Fleet, quotas: Quotas, *, num_told: int) -> list[Wait]:
    """All of them by position; the first `num_told` with reason and estimate. The fleet is used up by it."""
    words = _Words(fleet)
    # Said of all before any is queued up: that counts them among what their owners hold.
    over = [_over_quota(one.job, quotas) if one.is_over_quota else "" for one in blocked[:num_told]]
    waits: list[Wait] = []
    for position, (one, limits) in enumerate(zip(blocked, over, strict=False), start=1):
        spot = _queue_up(one, fleet, quotas)
        start_s = spot.start_s if spot is not None and spot.start_s < inf else None
        reason = limits or words.no_room(one, spot)
        if limits and start_s is not None:
            reason += f"; room for it in {about(start_s)}"
        waits.append(Wait(one.job.id, position, reason, start_s, one.reservation))
    untold = enumerate(blocked[num_told:], start=num_told + 1)
    return waits + [Wait(one.job.id, number, None, None, one.reservation) for number, one in untold]


def about(seconds: float) -> str:
    """`about 40 min`: in steps that grow, rounded up."""
    minutes = seconds / 60
    if minutes > STEPS_MIN[-1]:
        return f"about {-(-minutes // 1440):.0f} days"
    step = STEPS_MIN[bisect_left(STEPS_MIN, minutes)]
    return f"about {step} min" if step < 60 else f"about {step / 60:g} h"


def _queue_up(one: Blocked, fleet: Fleet, quotas: Quotas) -> Spot | None:
    """Where and when it starts if all before it go first; None where it never does."""
    spot = one.spot
    if spot is None:
        spot = fleet.soonest(one.job)
        if spot is None:
            return None
        spot = spot._replace(start_s=quotas.queue_up(one.job, spot.start_s))
        limit = quotas.limit(one.job)
        if limit is None or one.job.num_devices <= limit:
            fleet.claim(one.job, spot)
    else:
        quotas.queue_up(one.job, spot.start_s)
    return spot


def _over_quota(job: QueuedJob, quotas: Quotas) -> str:
    limit = quotas.limit(job)
    assert limit is not None
    if job.num_devices > limit:
        return f"needs {job.num_devices} devices, and {job.owner} may hold {limit} at once"
    held = quotas.held(job)
    if held + job.num_devices <= limit:
        return f"{job.owner} may hold {limit} devices at once, and those left are kept for a job of theirs ahead"
    return f"{job.owner} may hold {limit} devices at once and holds {held}; this one needs {job.num_devices}"


class _Words:
    """What is the same for all jobs of one size and type is looked for once."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept = lru_cache(self._find_kept)
        self._never = lru_cache(self._say_never)

    def no_room(self, one: Blocked, spot: Spot | None) -> str:
        job = one.job
        need = f"needs {_count(job.num_devices, job.device_type)} on one host"
        if spot is None:
            return f"{need}; {self._never(job.device_type, job.num_devices)}"
        if one.num_stopping:
            return f"{need}; {spot.host.name} makes room: jobs of low priority there are saving ({one.num_stopping})"
        kept = None if one.spot is not None else self._kept(job.device_type, job.num_devices)
        frees = f"{spot.host.name} frees {job.num_devices} in {about(spot.start_s)}" if spot.start_s < inf else ""
        when = frees or _idle(one, spot)
        ahead = "" if kept is None else f"{_free(kept)}{AHEAD}"
        return f"{need}; {when}" if ahead in ("", when) else f"{need}; {ahead}; {when}"

    def _find_kept(self, device_type: str, count: int) -> Host | None:
        """One whose free devices would do, were they not kept for others."""
        hosts = (host for host in self._fleet.serving(device_type) if topology.fit(host.free, count, host.group))
        return max(hosts, key=lambda host: (host.free.bit_count(), -host.rank), default=None)

    def _say_never(self, device_type: str, count: int) -> str:
        for drained in self._fleet.drained:
            if drained.num_devices >= count and (device_type == ANY or device_type in drained.serves):
                return f"{drained.name}, which has {drained.num_devices}, is drained: nothing new starts there"
        if not self._fleet.hosts:
            return "no host is online: start a worker"
        serving = self._fleet.serving(device_type)
        if not serving:
            return f"no host that is online has {device_type} devices"
        largest = max(serving, key=lambda host: (host.usable.bit_count(), -host.rank))
        size, num_usable = largest.capacity.num_devices, largest.usable.bit_count()
        if num_usable == size or size < count:
            return f"the largest online, {largest.name}, has {size}"
        if num_usable < count:
            return f"{largest.name} has {num_usable} of its {size} in service"
        return f"{largest.name} has {num_usable} of its {size} in service, but not {count} that are linked"


def _idle(one: Blocked, spot: Spot) -> str:
    """What is free where it would start, and why that is no use to it yet."""
    host, count = spot.host, one.job.num_devices
    num_free = host.free.bit_count()
    num_for_it = (host.free & spot.devices).bit_count() if one.spot is not None else 0
    if num_free >= count and not topology.fit(host.free, count, host.group):
        return f"{_free(host)}, but not {count} that are linked"
    if 0 < num_for_it < count:
        return _free(host) + (", kept for it" if num_for_it == num_free else f", {num_for_it} of them kept for it")
    return _free(host) + (AHEAD if num_free >= count else "")


def _free(host: Host) -> str:
    return f"{host.name} has {host.free.bit_count()} of {host.capacity.num_devices} free"


def _count(count: int, device_type: str) -> str:
    kind = "" if device_type == ANY else f"{device_type} "
    return f"{count} free {kind}device{'s' if count > 1 else ''}"
