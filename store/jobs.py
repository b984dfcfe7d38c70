"""Jobs: submit, read, ask for a change. The only writer of a job's status and of its `rev`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from store import events, ids
from store.db import insert_together, now
from store.errors import IdempotencyConflict, IllegalTransition, LongyardError, NotFound, TooManyJobs
from store.models import IdempotencyKey, Job
from store.states import JOB_TRANSITIONS, TERMINAL_JOB, Intent, JobStatus

MAX_QUEUED: Final = 10_000
_COUNT: Final = select(func.count()).select_from(Job).where(Job.status == bindparam("status"))


@dataclass(frozen=True)
class NewJob:
    """A validated spec, presets resolved and nothing left to default."""

    name: str
    preset: str
    train: Mapping[str, Any]
    num_devices: int
    device_type: str
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Page:
    """`next` goes into `after` for the rows that follow; None at the end."""

    rows: Sequence[Job]
    next: str | None


@dataclass(frozen=True)
class Submission:
    """`request_sha256` stands for the whole request: a key that comes again with another one is a conflict."""

    spec: NewJob
    owner: str
    idempotency_key: str | None = None
    request_sha256: str = ""


def submit(
    session: Session, spec: NewJob, *, owner: str, idempotency_key: str | None = None, request_sha256: str = ""
) -> tuple[Job, bool]:
    """Store a job; with a key seen before, answer that job and True.

    Raises IdempotencyConflict where the key came with another body, TooManyJobs at `MAX_QUEUED`.
    """
    (outcome,) = submit_together(session, [Submission(spec, owner, idempotency_key, request_sha256)])
    if isinstance(outcome, LongyardError):
        raise outcome
    return outcome


def submit_together(session: Session, submissions: Sequence[Submission]) -> list[tuple[Job, bool] | LongyardError]:
    """`submit` for each in turn, in a handful of statements; what one of them is refused for is its own outcome."""
    keys = [one.idempotency_key for one in submissions if one.idempotency_key is not None]
    used = session.scalars(select(IdempotencyKey).where(IdempotencyKey.key.in_(keys))).all() if keys else []
    known = {(one.owner, one.key): one for one in used}
    room = MAX_QUEUED - count(session, JobStatus.QUEUED)
    outcomes: list[tuple[Job, bool] | LongyardError] = []
    fresh: dict[str, Job] = {}
    for one in submissions:
        earlier = known.get((one.owner, one.idempotency_key or ""))
        if earlier is not None and earlier.request_sha256 != one.request_sha256:
            outcomes.append(_conflict(earlier.key))
        elif earlier is not None:
            outcomes.append((fresh.get(earlier.job_id) or get(session, earlier.job_id), True))
        elif len(fresh) >= room:
            outcomes.append(TooManyJobs(f"{MAX_QUEUED} jobs are queued already; wait, or cancel some"))
        else:
            job = _new(one.spec, owner=one.owner)
            fresh[job.id] = job
            outcomes.append((job, False))
            if one.idempotency_key is not None:
                known[one.owner, one.idempotency_key] = _key(one, one.idempotency_key, job)
    facts = [events.following(job, kind="submitted", owner=job.owner) for job in fresh.values()]
    insert_together(session, list(fresh.values()))
    insert_together(session, facts)
    insert_together(session, [key for key in known.values() if key.job_id in fresh])
    return outcomes


def get(session: Session, job_id: str, *, owner: str | None = None) -> Job:
    """The job, of `owner` where one is named. Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None or (owner is not None and job.owner != owner):
        raise NotFound("no such job")
    return job


def replayed(session: Session, *, owner: str, idempotency_key: str, request_sha256: str) -> Job | None:
    """The job that the key made before; None where it is new. Raises IdempotencyConflict where it came with another body."""
    earlier = session.get(IdempotencyKey, (owner, idempotency_key))
    if earlier is None:
        return None
    if earlier.request_sha256 != request_sha256:
        raise _conflict(idempotency_key)
    return get(session, earlier.job_id)


def many(session: Session, job_ids: Sequence[str]) -> Sequence[Job]:
    """Those of the jobs that there are, oldest first."""
    return session.scalars(select(Job).where(Job.id.in_(job_ids)).order_by(Job.id)).all() if job_ids else []


def revs(session: Session, *, newer_than: str) -> dict[str, int]:
    """The `rev` of each job that is not at its end or was made after the one named: what a watcher of all jobs compares."""
    query = select(Job.id, Job.rev).where(or_(Job.status.not_in(TERMINAL_JOB), Job.id > newer_than))
    return dict(session.execute(query).all())


def page(
    session: Session,
    *,
    owner: str | None = None,
    status: JobStatus | None = None,
    labels: Mapping[str, str] | None = None,
    text: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page:
    """Newest first. `text` is looked for in name and id, without regard to case."""
    query = select(Job).order_by(Job.id.desc()).limit(limit + 1)
    if owner is not None:
        query = query.where(Job.owner == owner)
    if status is not None:
        query = query.where(Job.status == status)
    for key, value in (labels or {}).items():
        query = query.where(Job.labels[key].as_string() == value)
    if text:
        query = query.where(or_(Job.name.icontains(text, autoescape=True), Job.id.icontains(text, autoescape=True)))
    if after is not None:
        query = query.where(Job.id < after)
    rows = session.scalars(query).all()
    return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


def count(session: Session, status: JobStatus) -> int:
    # On the connection: for one number the ORM's way to a statement takes longer than the statement.
    return session.connection().scalar(_COUNT, {"status": status}) or 0


def touch(session: Session, job_id: str) -> Job:
    """Lock the job's row and count its `rev` up: the first thing in any transaction that writes anything of a job.

    The row stays locked until the commit, so revs commit in order and a reader's cursor never skips one. Raises NotFound.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise NotFound("no such job")
    job.rev += 1
    return job


def touch_together(session: Session, job_ids: Collection[str]) -> list[str]:
    """`touch` for those of the jobs that are queued, whose place in the queue has changed. Answers their ids."""
    if not job_ids:
        return []
    mine = select(Job.id).where(Job.id.in_(job_ids), Job.status == JobStatus.QUEUED).order_by(Job.id).with_for_update()
    found = list(session.scalars(mine))
    session.execute(
        update(Job).where(Job.id.in_(found)).values(rev=Job.rev + 1), execution_options={"synchronize_session": False}
    )
    return found


def cancel(session: Session, job_id: str) -> Job:
    """Ask for the end of a job: at once where nothing runs, else by intent. Again is no error.

    Raises IllegalTransition where the job has succeeded or failed.
    """
    job = get(session, job_id)
    if job.status is JobStatus.CANCELLED or (job.intent is Intent.CANCEL and job.status is JobStatus.RUNNING):
        return job
    job = touch(session, job_id)
    if job.status in TERMINAL_JOB and job.status is not JobStatus.CANCELLED:
        raise IllegalTransition(f"the job {_standing(job)}; there is nothing to cancel")
    if job.status is JobStatus.CANCELLED:
        return job
    job.intent, job.intent_at = Intent.CANCEL, now()
    events.append(session, job, kind="cancel_requested")
    if job.status is not JobStatus.RUNNING:
        move(
            session,
            job,
            JobStatus.CANCELLED,
            reason="cancelled before it ran" if job.num_attempts == 0 else "cancelled",
        )
    return job


def pause(session: Session, job_id: str) -> Job:
    """Keep a job from running, or have it checkpoint and stop, until it is resumed. Again is no error.

    Raises IllegalTransition where the job has ended or is being cancelled.
    """
    job = touch(session, job_id)
    if job.status is JobStatus.PAUSED or (job.status is JobStatus.RUNNING and job.intent is Intent.PAUSE):
        return job
    if job.status in TERMINAL_JOB or job.intent is Intent.CANCEL:
        raise IllegalTransition(f"the job {_standing(job)}; there is nothing to pause")
    job.intent, job.intent_at = Intent.PAUSE, now()
    events.append(session, job, kind="pause_requested")
    if job.status is JobStatus.QUEUED:
        move(session, job, JobStatus.PAUSED, reason="paused before it ran" if job.num_attempts == 0 else "paused")
    return job


def resume(session: Session, job_id: str) -> Job:
    """Take a pause back: queue the job again, or let it run on where it has not stopped yet. Again is no error.

    Raises IllegalTransition where the job has ended or is being cancelled.
    """
    job = touch(session, job_id)
    if job.status in TERMINAL_JOB or job.intent is Intent.CANCEL:
        raise IllegalTransition(f"the job {_standing(job)}; `retry` starts a failed or cancelled one again")
    if job.intent is Intent.PAUSE:
        job.intent, job.intent_at = Intent.RUN, now()
        events.append(session, job, kind="resume_requested")
        if job.status is JobStatus.PAUSED:
            move(session, job, JobStatus.QUEUED, reason=None)
    return job


def retry(session: Session, job_id: str) -> Job:
    """Queue a failed or cancelled job again, its strikes and its running time forgotten; it resumes from its newest checkpoint.
    Again is no error.

    Raises IllegalTransition where the job has succeeded, is paused, or is being cancelled.
    """
    job = touch(session, job_id)
    if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        job.intent, job.intent_at, job.strikes, job.retry_delay_s, job.ran_s = Intent.RUN, now(), 0, 0.0, 0.0
        job.finished_at = None
        events.append(session, job, kind="retry_requested")
        move(session, job, JobStatus.QUEUED, reason=None)
    elif job.status not in (JobStatus.QUEUED, JobStatus.RUNNING) or job.intent is Intent.CANCEL:
        raise IllegalTransition(f"the job {_standing(job)}; only one that failed or was cancelled can be retried")
    return job


def preempt(session: Session, job_id: str, *, why: str) -> Job:
    """Ask a running job to checkpoint and go back to the queue, unless its user wants it paused or cancelled."""
    job = touch(session, job_id)
    if job.status is JobStatus.RUNNING and job.intent is Intent.RUN:
        job.intent, job.intent_at = Intent.PREEMPT, now()
        events.append(session, job, kind="preempt_requested", why=why)
    return job


def move(session: Session, job: Job, status: JobStatus, *, reason: str | None) -> None:
    """Write a job's status; the only place that does. `job` comes from `touch`. Raises IllegalTransition."""
    if status not in JOB_TRANSITIONS[job.status]:
        raise IllegalTransition(f"a job that is {job.status.value} cannot become {status.value}")
    before, job.status, job.status_reason = job.status, status, reason
    if status is JobStatus.RUNNING:
        job.started_at = job.started_at or now()
    elif status is JobStatus.QUEUED and job.intent is Intent.PREEMPT:
        job.intent = Intent.RUN
    if status in TERMINAL_JOB:
        job.finished_at, job.eta_s = now(), None
    if status is not JobStatus.QUEUED:
        job.wait_reason = job.estimated_start_at = job.reservation = None
    events.append(session, job, kind="status", status=status.value, before=before.value, reason=reason)


def progress(
    session: Session, job: Job, *, step: int | None, total_steps: int | None, phase: str | None, eta_s: float | None
) -> None:
    """What a supervisor has seen last. `job` comes from `attempts.renew`; None leaves a field as it is, but for `eta_s`."""
    job.step = job.step if step is None else step
    job.total_steps = job.total_steps if total_steps is None else total_steps
    job.phase = job.phase if phase is None else phase
    job.eta_s = eta_s


def set_wait(
    session: Session,
    job_id: str,
    *,
    reason: str | None,
    estimated_start_at: datetime | None = None,
    reservation: dict[str, Any] | None = None,
) -> bool:
    """Tell a queued job why it waits, and what is kept for it. False where it is not queued any more. Raises NotFound."""
    job = touch(session, job_id)
    if job.status is not JobStatus.QUEUED:
        return False
    job.wait_reason, job.estimated_start_at, job.reservation = reason, estimated_start_at, reservation
    return True


def _standing(job: Job) -> str:
    if job.intent is Intent.CANCEL and job.status is JobStatus.RUNNING:
        return "is being cancelled"
    perfect = {JobStatus.SUCCEEDED: "has succeeded already", JobStatus.FAILED: "has failed already"}
    return perfect.get(job.status, f"is {job.status.value}")


def _new(spec: NewJob, *, owner: str) -> Job:
    return Job(
        id=ids.new(),
        owner=owner,
        name=spec.name,
        preset=spec.preset,
        train=dict(spec.train),
        num_devices=spec.num_devices,
        device_type=spec.device_type,
        priority=spec.priority,
        labels=dict(spec.labels),
        time_limit_s=spec.time_limit_s,
        status=JobStatus.QUEUED,
        intent=Intent.RUN,
        strikes=0,
        retry_delay_s=0.0,
        ran_s=0.0,
        num_attempts=0,
        num_events=0,
        rev=1,
        created_at=now(),
    )


def _key(submission: Submission, key: str, job: Job) -> IdempotencyKey:
    return IdempotencyKey(
        owner=submission.owner, key=key, request_sha256=submission.request_sha256, job_id=job.id, created_at=now()
    )


def _conflict(key: str) -> IdempotencyConflict:
    return IdempotencyConflict(f"Idempotency-Key {key!r} was used with another body")
