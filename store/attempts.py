"""Attempts and the lease of each: place, begin, renew, close. The only writer of an attempt's status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from store import checkpoints, events, hosts, ids, jobs, states
from store.db import now
from store.errors import IllegalTransition, LeaseLost, NotFound, PlacementConflict
from store.models import Attempt, Host, Job
from store.states import (
    ATTEMPT_STATUS_OF,
    ATTEMPT_TRANSITIONS,
    OPEN_ATTEMPT,
    AttemptStatus,
    Closing,
    ExitReason,
    HostStatus,
    Intent,
    JobStatus,
)

_NEWEST: Final = (
    select(Attempt)
    .join(Job, (Job.id == Attempt.job_id) & (Job.num_attempts == Attempt.number))
    .where(Job.id.in_(bindparam("job_ids", expanding=True)))
)


def place(session: Session, job_id: str, *, host: str, device_indices: Sequence[int]) -> Attempt:
    """Give a queued job its devices, all or none, and open its next attempt there.

    Raises PlacementConflict where the job, the host or a device is no longer what the planner saw.
    """
    job = jobs.touch(session, job_id)
    if job.status is not JobStatus.QUEUED or job.intent is not Intent.RUN:
        raise PlacementConflict(f"job {job_id} is {job.status.value} and wants {job.intent.value}")
    if len(device_indices) != job.num_devices:
        raise PlacementConflict(f"job {job_id} needs {job.num_devices} devices, not {len(device_indices)}")
    with session.no_autoflush:
        # Shared with other placements, and not with whoever drains it: once that is answered, nothing new starts there.
        target = session.get(Host, host, with_for_update={"read": True}, populate_existing=True)
    if target is None or target.status is not HostStatus.ONLINE or target.drained_at is not None:
        raise PlacementConflict(f"host {host} takes no jobs now")
    job.num_attempts += 1
    # What the last attempt did after its last checkpoint is not this one's.
    earlier = checkpoints.newest_first(session, job_id) if job.num_attempts > 1 else ()
    job.step = next((one.step for one in earlier), None)
    job.phase = job.eta_s = None
    attempt = Attempt(
        id=ids.new(),
        job_id=job.id,
        number=job.num_attempts,
        host=host,
        device_type=target.device_type,
        devices=sorted(device_indices),
        simulated=target.simulated,
        status=AttemptStatus.STARTING,
        beat=0,
        metrics_offset=0,
        ran_s=0.0,
        created_at=now(),
    )
    session.add(attempt)
    session.flush()
    hosts.hold(session, host, device_indices=attempt.devices, attempt_id=attempt.id)
    jobs.move(session, job, JobStatus.RUNNING, reason=None)
    told = {"simulated": True} if attempt.simulated else {}
    events.append(session, job, kind="placed", attempt=attempt.number, host=host, devices=attempt.devices, **told)
    session.flush()
    return attempt


def begin(session: Session, attempt_id: str, *, job_id: str, boot_id: str) -> Job:
    """The supervisor has the attempt: starting → running. Raises LeaseLost where it is closed or somebody began it before."""
    job, attempt = _hold(session, attempt_id, job_id=job_id)
    if attempt.status is not AttemptStatus.STARTING:
        raise LeaseLost(f"attempt {attempt_id} was begun before")
    _move(attempt, AttemptStatus.RUNNING)
    attempt.boot_id, attempt.started_at = boot_id, now()
    events.append(
        session, job, kind="attempt_started", attempt=attempt.number, host=attempt.host, devices=attempt.devices
    )
    return job


def renew(session: Session, attempt_id: str, *, job_id: str, ran_s: float | None = None) -> Job:
    """The fence: every transaction of a supervisor starts with it. Answers the job, whose `intent` and new `rev` it needs.

    `ran_s` is how long the attempt has had its devices, by its supervisor's clock. Raises LeaseLost where the attempt is no longer
    open: the caller ends its ranks and leaves.
    """
    job, attempt = _hold(session, attempt_id, job_id=job_id)
    if ran_s is not None:
        attempt.ran_s = max(attempt.ran_s, ran_s)
    return job


def advance_metrics(session: Session, attempt_id: str, *, offset: int, step: int | None) -> None:
    """How far `metrics.jsonl` has been committed, in bytes. In a transaction that `renew` opened."""
    attempt = get(session, attempt_id)
    assert offset >= attempt.metrics_offset, "the metrics offset went back"
    attempt.metrics_offset = offset
    attempt.step = attempt.step if step is None else step


def close(
    session: Session,
    attempt_id: str,
    *,
    job_id: str,
    reason: ExitReason,
    message: str | None,
    failing_rank: int | None = None,
    result: dict[str, Any] | None = None,
    devices_clean: bool,
    seen_beat: int | None = None,
    retry_s: float = states.FIRST_DELAY_S,
) -> Closing:
    """End an attempt and, by the closing table, say what becomes of its job; frees the devices where no process is left on them.

    `devices_clean` is False where nobody has looked: the devices stay unverified until their host has. `seen_beat` is the beat by
    which somebody else judged the lease to be over. `retry_s` is the wait before a first retry. Raises LeaseLost, also where it was
    renewed since.
    """
    job, attempt = _hold(session, attempt_id, job_id=job_id)
    if seen_beat is not None and attempt.beat != seen_beat + 1:
        raise LeaseLost(f"attempt {attempt_id} was renewed meanwhile")
    closing = states.close(reason, intent=job.intent, strikes=job.strikes, retry_s=retry_s)
    # The last lines and points of this transaction go before its end: a closed attempt takes none, which the database itself sees to.
    session.flush()
    _move(attempt, ATTEMPT_STATUS_OF[reason])
    attempt.exit_reason, attempt.message, attempt.failing_rank, attempt.finished_at = (
        reason,
        message,
        failing_rank,
        now(),
    )
    job.strikes, job.retry_delay_s = closing.strikes, closing.delay_s
    job.ran_s += attempt.ran_s
    if result is not None:
        job.result = _finite(result)
    events.append(
        session,
        job,
        kind="attempt_closed",
        attempt=attempt.number,
        exit_reason=reason.value,
        message=message,
        failing_rank=failing_rank,
        retry_delay_s=closing.delay_s,
    )
    jobs.move(session, job, closing.job_status, reason=message)
    session.info.pop(attempt_id)
    if devices_clean:
        hosts.free(session, attempt_id)
    else:
        hosts.doubt(session, attempt_id)
    return closing


def get(session: Session, attempt_id: str) -> Attempt:
    """Raises NotFound."""
    attempt = session.get(Attempt, attempt_id)
    if attempt is None:
        raise NotFound("no such attempt")
    return attempt


def newest(session: Session, job_id: str) -> Attempt | None:
    return session.scalars(
        select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number.desc()).limit(1)
    ).first()


def numbered(session: Session, job_id: str, number: int) -> Attempt | None:
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == number)).first()


def newest_of(session: Session, job_ids: Sequence[str]) -> dict[str, Attempt]:
    """The newest attempt of each job that has one, by job id: one query for a whole page of jobs."""
    rows = session.scalars(_NEWEST, {"job_ids": job_ids}) if job_ids else ()
    return {attempt.job_id: attempt for attempt in rows}


def of_job(session: Session, job_id: str) -> Sequence[Attempt]:
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()


def open_on_host(session: Session, host: str) -> Sequence[Attempt]:
    return session.scalars(
        select(Attempt).where(Attempt.host == host, Attempt.status.in_(OPEN_ATTEMPT)).order_by(Attempt.id)
    ).all()


def beats(session: Session, *, host: str | None = None) -> dict[str, tuple[str, str, int]]:
    """Every open attempt, or one host's: id → (job id, host, beat), for the judge who watches whether the beat stands still."""
    query = select(Attempt.id, Attempt.job_id, Attempt.host, Attempt.beat).where(Attempt.status.in_(OPEN_ATTEMPT))
    rows = session.execute(query if host is None else query.where(Attempt.host == host))
    return {attempt_id: (job_id, host, beat) for attempt_id, job_id, host, beat in rows}


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: PostgreSQL refuses them, and the attempt could not be closed."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()
    }


def _hold(session: Session, attempt_id: str, *, job_id: str) -> tuple[Job, Attempt]:
    """Lock job, then attempt (always in this order), and count both up, once a transaction. Raises LeaseLost unless the attempt is open."""
    if (held := session.info.get(attempt_id)) is not None:
        return held
    try:
        job = jobs.touch(session, job_id)
    except NotFound as error:
        raise LeaseLost(f"job {job_id} is gone") from error
    # What `touch` has written goes out with the rest, in one statement.
    with session.no_autoflush:
        attempt = session.get(Attempt, attempt_id, with_for_update=True, populate_existing=True)
    if attempt is None or attempt.status not in OPEN_ATTEMPT:
        raise LeaseLost(f"attempt {attempt_id} is no longer open")
    attempt.beat += 1
    # A session of ours is one transaction. It would keep only what is changed, and read the rest again.
    session.info[attempt_id] = job, attempt
    return job, attempt


def _move(attempt: Attempt, status: AttemptStatus) -> None:
    if status not in ATTEMPT_TRANSITIONS[attempt.status]:
        raise IllegalTransition(f"an attempt that is {attempt.status.value} cannot become {status.value}")
    attempt.status = status
