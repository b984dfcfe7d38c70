"""The queue as a planning pass sees it, read in two statements; and the order that it planned, which is where positions come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import hosts
from store.db import now
from store.hosts import Slot
from store.jobs import MAX_QUEUED, NewJob
from store.models import Attempt, Device, Host, Job, QueueOrder
from store.placement.types import HostCapacity, QueuedJob, Reservation, RunningJob, Share
from store.states import DeviceState, HostStatus, Intent, JobStatus
from store.usage import Usage

STOPPING_S: Final = 30.0
"""What a job that was asked to stop is expected to take; also what one may run over its time limit while it is stopped."""
ID_BYTES: Final = 16
NEWCOMER: Final = "~"
"""Sorts behind all ids: of two that came at once, the stored one goes first."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job, and what it was told last."""

    job: QueuedJob
    num_attempts: int
    retry_delay_s: float
    reason: str | None
    estimated_start_at: datetime | None


@dataclass(frozen=True)
class Situation:
    """`hosts` are those that are online, drained ones with nothing to give; `running` the jobs that hold devices, also elsewhere.

    `unsettled`: the jobs whose last attempt others closed, each with its host, which has yet to see that no process of it is left.
    """

    waiting: Sequence[Waiting]
    hosts: Sequence[HostCapacity]
    running: Sequence[RunningJob]
    unsettled: Mapping[str, str]

    def shares(self, usage: Usage, *, quotas: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, Share]:
        """What each owner who waits or holds something is due."""
        owners = {one.job.owner for one in self.waiting} | {one.owner for one in self.running}
        return usage.shares(owners, quotas=quotas, weights=weights)


def newcomer(spec: NewJob, owner: str, usage: Usage) -> Waiting:
    """One that is not stored, as it would stand in the queue if it came now."""
    job = QueuedJob(
        id=NEWCOMER,
        num_devices=spec.num_devices,
        device_type=spec.device_type,
        owner=owner,
        priority=spec.priority,
        at_most_s=_limit_s(spec.time_limit_s, 0.0),
        expected_s=usage.typical_s(owner, spec.preset, ran_s=0.0),
    )
    return Waiting(job, num_attempts=0, retry_delay_s=0.0, reason=None, estimated_start_at=None)


def read(session: Session, usage: Usage, *, also: Waiting | None = None) -> Situation:
    """All that is to be planned, and one that is not stored; no hosts where nothing waits."""
    waiting = [*_waiting(session, usage), *([] if also is None else [also])]
    capacities, running, unsettled = _fleet(session, usage) if waiting else ([], [], {})
    return Situation(waiting, capacities, running, unsettled)


def order(session: Session) -> bytes:
    """The queue as it was planned last; empty before the first pass, and where the row was lost: the next pass makes it anew."""
    return session.execute(select(QueueOrder.job_ids)).scalar_one_or_none() or b""


def encode(job_ids: Iterable[str]) -> bytes:
    return b"".join(UUID(job_id).bytes for job_id in job_ids)


def is_at(planned: bytes, position: int, job_id: str) -> bool:
    """Whether the job stands at that place, counted from 1."""
    return planned[(position - 1) * ID_BYTES : position * ID_BYTES] == UUID(job_id).bytes


def keep_order(session: Session, job_ids: bytes) -> None:
    row = session.get(QueueOrder, 1, with_for_update=True)
    if row is None:
        session.add(QueueOrder(id=1, job_ids=job_ids))
    else:
        row.job_ids = job_ids


def positions(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """The places of those of the jobs that were planned, from 1."""
    planned = order(session) if job_ids else b""
    found = {job_id: _place(planned, UUID(job_id).bytes) for job_id in job_ids}
    return {job_id: place for job_id, place in found.items() if place is not None}


def reservation_of(stored: dict[str, Any] | None) -> Reservation | None:
    if stored is None:
        return None
    return Reservation(stored["level"], stored["number"], stored["host"], tuple(stored["device_indices"]))


def store_reservation(reservation: Reservation | None) -> dict[str, Any] | None:
    return None if reservation is None else asdict(reservation)


def _place(planned: bytes, wanted: bytes) -> int | None:
    start = planned.find(wanted)
    while start % ID_BYTES and start >= 0:
        start = planned.find(wanted, start + 1)
    return None if start < 0 else start // ID_BYTES + 1


def _waiting(session: Session, usage: Usage) -> list[Waiting]:
    at = now()
    rows = session.execute(
        select(
            Job.id, Job.num_devices, Job.device_type, Job.owner, Job.preset, Job.priority, Job.created_at, Job.time_limit_s,
            Job.ran_s, Job.num_attempts, Job.retry_delay_s, Job.wait_reason, Job.estimated_start_at, Job.reservation,
        )
        .where(Job.status == JobStatus.QUEUED, Job.intent == Intent.RUN)
        .limit(MAX_QUEUED)
    ).all()  # fmt: skip
    return [
        Waiting(
            QueuedJob(
                id=row.id,
                num_devices=row.num_devices,
                device_type=row.device_type,
                owner=row.owner,
                priority=row.priority,
                waited_s=(at - row.created_at).total_seconds(),
                at_most_s=_limit_s(row.time_limit_s, row.ran_s),
                expected_s=usage.typical_s(row.owner, row.preset, ran_s=row.ran_s),
                reservation=reservation_of(row.reservation),
            ),
            row.num_attempts,
            row.retry_delay_s,
            row.wait_reason,
            row.estimated_start_at,
        )
        for row in rows
    ]


def _fleet(session: Session, usage: Usage) -> tuple[list[HostCapacity], list[RunningJob], dict[str, str]]:
    rows = session.execute(
        select(
            Host.name, Host.status, Host.device_type, Device.index.label("device_index"), Device.state, Device.cordoned_at,
            Device.unfit_reason,
            Device.attempt_id, Attempt.ran_s, Job.id, Job.owner, Job.preset, Job.priority, Job.intent, Job.eta_s, Job.time_limit_s,
            Job.ran_s.label("ran_before_s"), Host.drained_at,
        )
        .join(Device, Device.host == Host.name)
        .outerjoin(Attempt, Attempt.id == Device.attempt_id)
        .outerjoin(Job, Job.id == Attempt.job_id)
        .order_by(Host.name, Device.index)
    ).all()  # fmt: skip
    by_host: dict[str, list[Any]] = {}
    held: dict[str, list[Any]] = {}
    for row in rows:
        by_host.setdefault(row.name, []).append(row)
        if row.state is DeviceState.HELD:
            held.setdefault(row.attempt_id, []).append(row)
    online = [_capacity(name, devices) for name, devices in by_host.items() if devices[0].status is HostStatus.ONLINE]
    # Nobody waits for a host that is lost: what runs there has fenced itself.
    unsettled = {
        row.id: row.name for row in rows if row.state is DeviceState.UNVERIFIED and row.status is not HostStatus.LOST
    }
    return online, [_running(devices, usage) for devices in held.values()], unsettled


def _capacity(name: str, devices: Sequence[Any]) -> HostCapacity:
    slots = [Slot(one.device_index, one.state, one.cordoned_at, one.unfit_reason) for one in devices]
    is_drained = devices[0].drained_at is not None
    return hosts.capacity(name, devices[0].device_type, slots, is_drained=is_drained)


def _running(devices: Sequence[Any], usage: Usage) -> RunningJob:
    first = devices[0]
    is_stopping = first.intent is not Intent.RUN
    return RunningJob(
        id=first.id,
        host=first.name,
        device_indices=tuple(one.device_index for one in devices),
        owner=first.owner,
        priority=first.priority,
        left_s=STOPPING_S if is_stopping else _left_s(first, usage),
        held_s=first.ran_s,
        is_stopping=is_stopping,
    )


def _left_s(row: Any, usage: Usage) -> float | None:
    """By its measured progress; before there is any, by what such jobs took; never past its time limit."""
    ran_s = row.ran_before_s + row.ran_s
    guess_s = row.eta_s if row.eta_s is not None else usage.typical_s(row.owner, row.preset, ran_s=ran_s)
    known = [value for value in (guess_s, _limit_s(row.time_limit_s, ran_s)) if value is not None]
    return min(known, default=None)


def _limit_s(time_limit_s: float | None, ran_s: float) -> float | None:
    return None if time_limit_s is None else max(0.0, time_limit_s - ran_s) + STOPPING_S
