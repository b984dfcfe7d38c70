"""What the plane is compared with: first come first served, on the first host with enough free devices; what does not fit is passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from store.placement.types import HostCapacity, Placement, Plan, QueuedJob, Wait


def plan(jobs: Iterable[QueuedJob], hosts: Iterable[HostCapacity], **_: Any) -> Plan:
    """It knows no owner, no priority, no linked groups and no estimates."""
    free: Mapping[str, list[int]] = {host.name: list(host.free) for host in sorted(hosts, key=lambda host: host.name)}
    placements: list[Placement] = []
    waits: list[Wait] = []
    in_vain = 1 << 30
    for job in sorted(jobs, key=lambda job: (-job.waited_s, job.id)):
        # What has not fitted once does not later in the pass: devices only become fewer.
        names = (name for name, indices in free.items() if len(indices) >= job.num_devices)
        name = next(names, None) if job.num_devices < in_vain else None
        if name is None:
            in_vain = min(in_vain, job.num_devices)
            waits.append(Wait(job.id, len(waits) + 1, None))
            continue
        taken, free[name][:] = free[name][: job.num_devices], free[name][job.num_devices :]
        placements.append(Placement(job.id, name, tuple(taken)))
    return Plan(placements, [], waits)
