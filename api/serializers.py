"""From the tables to the wire. Reads what a job shows besides its own row: its newest attempt, and a failed one's last lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from api import log_text, schemas, status_text
from store import attempts, hosts, logs, models, planning_queue
from store.db import now
from store.hosts import HostView
from store.jobs import NewJob
from store.placement.types import Placement, Wait
from store.states import JobStatus
from store.tokens import Identity
from trainer.estimate.request import Estimate
from trainer.spec.presets import Preset

TAIL_LINES: Final = 20
TAIL_BYTES: Final = 16 * 1024


def sees(identity: Identity, owner: str) -> bool:
    return identity.scope == "admin" or identity.owner == owner


def one(session: Session, job: models.Job) -> schemas.Job:
    return many(session, [job])[0]


def many(session: Session, jobs: Sequence[models.Job]) -> list[schemas.Job]:
    """The jobs in their order, in one query more, and one for each that failed."""
    if not jobs:
        return []
    newest = attempts.newest_of(session, [job.id for job in jobs if job.num_attempts])
    waiting = [job for job in jobs if job.status is JobStatus.QUEUED]
    positions = planning_queue.positions(session, [job.id for job in waiting]) if waiting else {}
    no_hosts = any(job.wait_reason is None for job in waiting) and not hosts.any_registered(session)
    return [_job(session, job, newest.get(job.id), no_hosts=no_hosts, position=positions.get(job.id)) for job in jobs]


def fresh(job: models.Job, *, no_hosts: bool) -> schemas.Job:
    """A job that was stored a moment ago: it has no attempt, so nothing needs to be read."""
    return _job(None, job, None, no_hosts=no_hosts, position=None)


def spec(new: NewJob) -> schemas.Spec:
    return schemas.Spec(
        name=new.name,
        preset=new.preset,
        train=dict(new.train),
        num_devices=new.num_devices,
        device_type=new.device_type,
        priority=new.priority,
        time_limit_s=new.time_limit_s,
        labels=dict(new.labels),
    )


def dry_run(new: NewJob, verdict: Placement | Wait, estimate: Estimate) -> schemas.DryRun:
    placement, wait = None, None
    if isinstance(verdict, Placement):
        placement = schemas.Placement(host=verdict.host, devices=list(verdict.device_indices))
    else:
        start_at = None if verdict.starts_in_s is None else now() + timedelta(seconds=verdict.starts_in_s)
        reason = status_text.of_wait(verdict.reason or status_text.of_unplanned(no_hosts=False), verdict.position)
        wait = schemas.Wait(
            position=verdict.position,
            reason=reason,
            estimated_start_at=start_at,
            is_promised=verdict.reservation is not None,
        )
    return schemas.DryRun(spec=spec(new), placement=placement, wait=wait, steps=estimate.steps.value, estimate=estimate)


def attempt(row: models.Attempt) -> schemas.Attempt:
    return schemas.Attempt(
        number=row.number,
        host=row.host,
        devices=row.devices,
        device_type=row.device_type,
        simulated=row.simulated,
        status=row.status,
        exit_reason=row.exit_reason,
        message=row.message,
        failing_rank=row.failing_rank,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def event(row: models.Event) -> schemas.Event:
    return schemas.Event(seq=row.seq, kind=row.kind, data=row.data, at=row.at)


def checkpoint(number: int, row: models.Checkpoint) -> schemas.Checkpoint:
    return schemas.Checkpoint(attempt=number, step=row.step, dir=row.dir, created_at=row.created_at)


def host(view: HostView) -> schemas.Host:
    row = view.host
    devices = [
        schemas.Device(
            index=one.device.index,
            name=one.device.name,
            state=one.device.state,
            cordoned=one.device.cordoned_at is not None,
            health=one.device.health,
            temperature_c=one.device.temperature_c,
            utilization=one.device.utilization,
            memory_used_bytes=one.device.memory_used_bytes,
            memory_total_bytes=one.device.memory_total_bytes,
            unfit_reason=one.device.unfit_reason,
            job_id=one.job_id,
            owner=one.owner,
            attempt=one.attempt_number,
        )
        for one in view.devices
    ]
    return schemas.Host(
        name=row.name,
        status=view.status,
        drained_at=row.drained_at,
        device_type=row.device_type,
        simulated=row.simulated,
        devices=devices,
        versions=row.versions,
        last_seen_at=row.last_seen_at,
    )


def preset(row: Preset) -> schemas.Preset:
    return schemas.Preset(
        name=row.name,
        title=row.title,
        description=row.description,
        num_devices=row.num_devices,
        device_type=row.device_type,
        train=dict(row.train),
    )


def point(step: int, value: float | None, at: datetime, flag: str | None) -> list[Any]:
    """A metric point as JSON has it: NaN and infinities are null and a fourth element says which."""
    when = timestamp(at)
    return [step, value, when] if flag is None else [step, None, when, flag]


def timestamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _job(
    session: Session | None, row: models.Job, newest: models.Attempt | None, *, no_hosts: bool, position: int | None
) -> schemas.Job:
    wait = _wait(row, no_hosts=no_hosts, position=position)
    return schemas.Job(
        id=row.id,
        name=row.name,
        status=row.status,
        status_reason=status_text.of_job(row, newest, waits_for=wait.reason if wait else ""),
        intent=row.intent,
        preset=row.preset,
        train=row.train,
        num_devices=row.num_devices,
        device_type=row.device_type,
        priority=row.priority,
        labels=row.labels,
        owner=row.owner,
        time_limit_s=row.time_limit_s,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=_progress(row),
        wait=wait,
        attempt=attempt(newest) if newest else None,
        result=_result(row.result),
        log_tail=_log_tail(session, newest) if session and newest and row.status is JobStatus.FAILED else None,
        cursor=row.rev,
    )


def _progress(row: models.Job) -> schemas.Progress | None:
    if row.step is None and row.phase is None:
        return None
    fraction = min(1.0, row.step / row.total_steps) if row.step is not None and row.total_steps else None
    return schemas.Progress(
        step=row.step, total_steps=row.total_steps, fraction=fraction, eta_s=row.eta_s, phase=row.phase
    )


def _wait(row: models.Job, *, no_hosts: bool, position: int | None) -> schemas.Wait | None:
    if row.status is not JobStatus.QUEUED:
        return None
    reason = status_text.of_wait(row.wait_reason or status_text.of_unplanned(no_hosts=no_hosts), position)
    return schemas.Wait(
        position=position,
        reason=reason,
        estimated_start_at=row.estimated_start_at,
        is_promised=row.reservation is not None,
    )


def _result(result: Mapping[str, Any] | None) -> schemas.Result | None:
    if result is None:
        return None
    known: dict[str, Any] = {}
    for name in schemas.Result.model_fields:
        value = result.get(name)
        # JSON has no NaN; a perplexity that is infinite is one that is not known.
        known[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return schemas.Result(**known)


def _log_tail(session: Session, newest: models.Attempt) -> list[str]:
    _start, data = logs.tail(
        session, newest.id, rank=newest.failing_rank or 0, lines=TAIL_LINES, limit_bytes=TAIL_BYTES
    )
    return log_text.text(data).rstrip("\n").split("\n") if data else []
