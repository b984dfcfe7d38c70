"""The planner, pure: which queued jobs go where now, and why the others wait. All of a job's devices are on one host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class QueuedJob:
    id: str
    num_devices: int
    device_type: str


@dataclass(frozen=True)
class HostCapacity:
    """One host that takes jobs. `serves` are the device types it runs; a simulated NPU host serves `npu`."""

    name: str
    serves: frozenset[str]
    free: tuple[int, ...]
    num_devices: int


@dataclass(frozen=True)
class Placement:
    job_id: str
    host: str
    device_indices: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """`position` counts from 1 in the order of planning."""

    job_id: str
    position: int
    reason: str


@dataclass(frozen=True)
class Plan:
    placements: Sequence[Placement]
    waits: Sequence[Wait]


def plan(jobs: Sequence[QueuedJob], hosts: Sequence[HostCapacity]) -> Plan:
    """First fit, in the order given; a job that does not fit lets later ones pass."""
    free = {host.name: list(host.free) for host in hosts}
    placements: list[Placement] = []
    waits: list[Wait] = []
    for job in jobs:
        host = next((host for host in hosts if _serves(host, job) and len(free[host.name]) >= job.num_devices), None)
        if host is None:
            waits.append(Wait(job.id, len(waits) + 1, _reason(job, hosts, free)))
            continue
        taken, free[host.name] = free[host.name][: job.num_devices], free[host.name][job.num_devices :]
        placements.append(Placement(job.id, host.name, tuple(taken)))
    return Plan(placements, waits)


def _serves(host: HostCapacity, job: QueuedJob) -> bool:
    return job.device_type == "any" or job.device_type in host.serves


def _reason(job: QueuedJob, hosts: Sequence[HostCapacity], free: dict[str, list[int]]) -> str:
    need = f"needs {job.num_devices} free {job.device_type} device{'s' if job.num_devices > 1 else ''} on one host"
    if not hosts:
        return f"{need}; no host is online: start a worker"
    fitting = [host for host in hosts if _serves(host, job)]
    if not fitting:
        return f"{need}; no host that is online has {job.device_type} devices"
    best = max(fitting, key=lambda host: (host.num_devices >= job.num_devices, len(free[host.name])))
    if best.num_devices < job.num_devices:
        return f"{need}; the largest online, {best.name}, has {best.num_devices}"
    return f"{need}; {best.name} has {len(free[best.name])} of {best.num_devices} free"
