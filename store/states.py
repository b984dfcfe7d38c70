"""Statuses, exit reasons, which may follow which, and what a closed attempt means for its job. Pure: no SQL, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Intent(StrEnum):
    """What the user or the planner wants of a job. A column, not a state; cancel is sticky."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"
    PREEMPT = "preempt"


class AttemptStatus(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    LOST = "lost"


class ExitReason(StrEnum):
    COMPLETED = "completed"
    USER_ERROR = "user_error"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    STORAGE = "storage"
    DEVICE_ERROR = "device_error"
    INFRA = "infra"
    HUNG = "hung"
    LEASE_EXPIRED = "lease_expired"
    LAUNCH_ERROR = "launch_error"
    USER_CANCELLED = "user_cancelled"
    PAUSED = "paused"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"


class HostStatus(StrEnum):
    ONLINE = "online"
    DRAINING = "draining"
    LOST = "lost"


class DeviceState(StrEnum):
    FREE = "free"
    HELD = "held"
    UNVERIFIED = "unverified"
    QUARANTINED = "quarantined"


_J, _A = JobStatus, AttemptStatus

JOB_TRANSITIONS: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    _J.QUEUED: frozenset({_J.RUNNING, _J.PAUSED, _J.CANCELLED}),
    _J.RUNNING: frozenset({_J.QUEUED, _J.PAUSED, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.PAUSED: frozenset({_J.QUEUED, _J.CANCELLED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset({_J.QUEUED}),
    _J.CANCELLED: frozenset({_J.QUEUED}),
}

_ENDED_ATTEMPT: Final = frozenset({_A.FAILED, _A.CANCELLED, _A.STOPPED, _A.LOST})

ATTEMPT_TRANSITIONS: Final[Mapping[AttemptStatus, frozenset[AttemptStatus]]] = {
    _A.STARTING: frozenset({_A.RUNNING}) | _ENDED_ATTEMPT,
    _A.RUNNING: frozenset({_A.SUCCEEDED}) | _ENDED_ATTEMPT,
    _A.SUCCEEDED: frozenset(),
    _A.FAILED: frozenset(),
    _A.CANCELLED: frozenset(),
    _A.STOPPED: frozenset(),
    _A.LOST: frozenset(),
}

INTENTS: Final[Mapping[JobStatus, frozenset[Intent]]] = {
    _J.QUEUED: frozenset({Intent.RUN}),
    _J.RUNNING: frozenset(Intent),
    _J.PAUSED: frozenset({Intent.PAUSE}),
    _J.SUCCEEDED: frozenset(Intent),
    _J.FAILED: frozenset({Intent.RUN, Intent.PREEMPT}),
    _J.CANCELLED: frozenset({Intent.CANCEL}),
}
"""What may be wanted of a job that has this status: where nothing runs, a wish has been carried out at once."""

TERMINAL_JOB: Final = frozenset({_J.SUCCEEDED, _J.FAILED, _J.CANCELLED})
OPEN_ATTEMPT: Final = frozenset({_A.STARTING, _A.RUNNING})

ATTEMPT_STATUS_OF: Final[Mapping[ExitReason, AttemptStatus]] = {
    ExitReason.COMPLETED: _A.SUCCEEDED,
    ExitReason.USER_ERROR: _A.FAILED,
    ExitReason.OUT_OF_MEMORY: _A.FAILED,
    ExitReason.DIVERGED: _A.FAILED,
    ExitReason.STORAGE: _A.FAILED,
    ExitReason.DEVICE_ERROR: _A.FAILED,
    ExitReason.INFRA: _A.FAILED,
    ExitReason.HUNG: _A.FAILED,
    ExitReason.LEASE_EXPIRED: _A.LOST,
    ExitReason.LAUNCH_ERROR: _A.FAILED,
    ExitReason.USER_CANCELLED: _A.CANCELLED,
    ExitReason.PAUSED: _A.STOPPED,
    ExitReason.PREEMPTED: _A.STOPPED,
    ExitReason.TIME_LIMIT: _A.FAILED,
}

TRIES: Final[Mapping[ExitReason, int]] = {
    ExitReason.INFRA: 5,
    ExitReason.DEVICE_ERROR: 5,
    ExitReason.STORAGE: 5,
    ExitReason.LEASE_EXPIRED: 5,
    ExitReason.LAUNCH_ERROR: 5,
    ExitReason.HUNG: 3,
    ExitReason.OUT_OF_MEMORY: 2,
}
"""How many tries without progress a job has when an attempt ends for this reason. Absent: none."""

FIRST_DELAY_S: Final = 10.0
MAX_DELAY_SHARE: Final = 36
"""The longest wait, in first waits: six minutes by default."""


@dataclass(frozen=True)
class Closing:
    """What the end of an attempt makes of its job."""

    job_status: JobStatus
    strikes: int
    delay_s: float = 0.0


def close(reason: ExitReason, *, intent: Intent, strikes: int, retry_s: float = FIRST_DELAY_S) -> Closing:
    """The closing table; the first matching line wins. `strikes` counts tries without progress before this one.

    `retry_s` is the wait before a first retry; each further one is twice as long.
    """
    if reason is ExitReason.COMPLETED:
        return Closing(JobStatus.SUCCEEDED, strikes)
    if intent is Intent.CANCEL:
        return Closing(JobStatus.CANCELLED, strikes)
    if intent is Intent.PAUSE:
        return Closing(JobStatus.PAUSED, strikes)
    if reason in (ExitReason.PREEMPTED, ExitReason.PAUSED):
        # Paused with the intent back at run: the user resumed while the ranks were saving.
        return Closing(JobStatus.QUEUED, strikes)
    tries = TRIES.get(reason)
    if tries is None:
        return Closing(JobStatus.FAILED, strikes)
    strikes += 1
    if strikes >= tries:
        return Closing(JobStatus.FAILED, strikes)
    return Closing(JobStatus.QUEUED, strikes, delay_s=retry_s * min(2 ** (strikes - 1), MAX_DELAY_SHARE))
