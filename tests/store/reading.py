"""What the database holds of jobs, attempts and devices, in the oracle's words; and the shape that it must have whatever happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import models
from tests.store import oracle

Row = Any


@dataclass(frozen=True)
class JobRows:
    """One job: what the oracle predicts of it, its timeline, and everything that is stamped with its `rev`."""

    job: models.Job
    facts: dict[str, Any]
    timeline: list[str]
    events: Sequence[models.Event]
    stamps: list[tuple[Any, ...]]


def predicted(job: oracle.Job) -> dict[str, Any]:
    return {
        "status": job.status,
        "intent": job.intent,
        "strikes": job.strikes,
        "delay_s": job.delay_s,
        "ran_s": job.ran_s,
        "step": job.step,
        "num_attempts": len(job.attempts),
    }


def jobs_of(session: Session) -> dict[str, JobRows]:
    events = _by_job(session, select(models.Event).order_by(models.Event.seq))
    chunks = _by_job(session, select(models.LogChunk))
    points = _by_job(session, select(models.MetricPoint))
    saved = _by_job(session, select(models.Checkpoint))
    return {
        job.id: JobRows(
            job,
            _facts(job),
            [event.kind for event in events[job.id]],
            events[job.id],
            [
                *(("event", row.seq, row.kind, row.rev) for row in events[job.id]),
                *(("log", row.attempt_id, row.offset, row.rev) for row in chunks[job.id]),
                *(("point", row.attempt_id, row.step, row.value, row.rev) for row in points[job.id]),
                *(("checkpoint", row.attempt_id, row.step, row.unusable_at, row.rev) for row in saved[job.id]),
            ],
        )
        for job in session.scalars(select(models.Job))
    }


def check_shape(rows: JobRows, *, before: JobRows | None) -> None:
    """Whatever happened: times fit the status, events are dense, and a reader's cursor misses nothing that is new."""
    job = rows.job
    assert (job.finished_at is not None) == (job.status.value in oracle.TERMINAL)
    assert job.started_at is not None or job.num_attempts == 0
    assert [event.seq for event in rows.events] == list(range(1, job.num_events + 1))
    assert all(stamp[-1] <= job.rev for stamp in rows.stamps)
    if before is None:
        return
    assert job.rev >= before.job.rev
    fresh = set(rows.stamps) - set(before.stamps)
    condemned = {stamp[:3] for stamp in before.stamps if stamp[0] == "checkpoint"}
    assert all(stamp[-1] > before.job.rev for stamp in fresh if stamp[:3] not in condemned)
    assert {stamp for stamp in before.stamps if stamp[0] in ("event", "log")} <= set(rows.stamps)
    assert job.rev > before.job.rev or (rows.facts, rows.timeline) == (before.facts, before.timeline)


def attempts_of(session: Session) -> dict[str, oracle.Attempt]:
    chunks: dict[str, list[models.LogChunk]] = defaultdict(list)
    for chunk in session.scalars(select(models.LogChunk).order_by(models.LogChunk.offset)):
        assert chunk.offset == sum(one.num_bytes for one in chunks[chunk.attempt_id]), "a gap, or bytes twice"
        chunks[chunk.attempt_id].append(chunk)
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for point in session.scalars(select(models.MetricPoint)):
        assert point.value is not None
        points[point.attempt_id][point.step] = point.value
    ends = {log.attempt_id: log.end_offset for log in session.scalars(select(models.RankLog))}
    found = {row.id: row for row in session.scalars(select(models.Attempt))}
    for row in found.values():
        assert (row.finished_at is not None) == (row.exit_reason is not None)
        assert row.started_at is not None or row.status.value not in ("running", "succeeded")
        assert ends.get(row.id, 0) == sum(chunk.num_bytes for chunk in chunks[row.id])
    return {
        row.id: oracle.Attempt(
            job_id=row.job_id,
            number=row.number,
            host=row.host,
            devices=frozenset(row.devices),
            status=row.status.value,
            exit_reason=row.exit_reason.value if row.exit_reason else None,
            beat=row.beat,
            ran_s=row.ran_s,
            log=b"".join(chunk.data for chunk in chunks[row.id]),
            points=points[row.id],
            metrics_offset=row.metrics_offset,
        )
        for row in found.values()
    }


def hosts_of(session: Session) -> dict[str, oracle.Host]:
    rows = session.scalars(select(models.Host))
    return {row.name: oracle.Host(row.status.value, row.beat, row.drained_at is not None) for row in rows}


def devices_of(session: Session) -> dict[tuple[str, int], oracle.Device]:
    rows = session.scalars(select(models.Device))
    return {
        (row.host, row.index): oracle.Device(
            row.state.value, row.attempt_id, row.cordoned_at is not None, row.health, row.unfit_reason
        )
        for row in rows
    }


def checkpoint_id(session: Session, attempt_id: str, step: int) -> str:
    where = (models.Checkpoint.attempt_id == attempt_id, models.Checkpoint.step == step)
    return session.scalars(select(models.Checkpoint.id).where(*where)).one()


def _facts(job: models.Job) -> dict[str, Any]:
    return {
        "status": job.status.value,
        "intent": job.intent.value,
        "strikes": job.strikes,
        "delay_s": job.retry_delay_s,
        "ran_s": job.ran_s,
        "step": job.step,
        "num_attempts": job.num_attempts,
    }


def _by_job(session: Session, query: Any) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in session.scalars(query):
        found[row.job_id].append(row)
    return found
