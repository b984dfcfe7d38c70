"""A worker's transactions, as it makes them: each under the fence, refused by name or committed whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from store import attempts, checkpoints, db, device_health, jobs, logs, metrics
from store.db import Database
from store.errors import IdempotencyConflict, IllegalTransition, LeaseLost, PlacementConflict
from store.metrics import Point
from store.states import ExitReason
from tests.store import reading

REFUSALS = (LeaseLost, IllegalTransition, PlacementConflict, IdempotencyConflict)


@dataclass(frozen=True)
class Holder:
    """Who was given an attempt; it may be closed since, and its holder not know."""

    job_id: str
    attempt_id: str


def forget_the_disk(database: Database) -> None:
    """Thousands of commits that need not outlive the machine."""
    statement = "PRAGMA synchronous=OFF" if database.is_sqlite else "SET synchronous_commit TO off"

    @event.listens_for(database.engine, "connect")
    def configure(connection: Any, _entry: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    database.dispose()


def tries(database: Database, write: Callable[[Session], object]) -> str | None:
    """The name of the error with which the store refused, and took everything back; None: it is committed."""
    try:
        with database.write() as session:
            write(session)
    except REFUSALS as error:
        return type(error).__name__
    return None


def ingest(session: Session, holder: Holder, data: bytes, *, step: int, value: float) -> None:
    """`data` of rank 0's log and a point of the loss, from where the committed ones end."""
    job = attempts.renew(session, holder.attempt_id, job_id=holder.job_id)
    offset = logs.ends(session, holder.attempt_id).get(0, 0)
    logs.append(session, job, attempt_id=holder.attempt_id, rank=0, offset=offset, data=data)
    metrics.append(session, job, attempt_id=holder.attempt_id, points=[Point("loss", step, value, db.now())])
    jobs.progress(session, job, step=step, total_steps=9, phase="train", eta_s=None)
    before = attempts.get(session, holder.attempt_id).metrics_offset
    attempts.advance_metrics(session, holder.attempt_id, offset=before + len(data), step=step)


def ingest_from_the_start(session: Session, holder: Holder) -> None:
    """What a writer does that did not hear of its commit."""
    job = attempts.renew(session, holder.attempt_id, job_id=holder.job_id)
    logs.append(session, job, attempt_id=holder.attempt_id, rank=0, offset=0, data=b"again")


def publish(session: Session, holder: Holder, step: int) -> None:
    job = attempts.renew(session, holder.attempt_id, job_id=holder.job_id)
    checkpoints.publish(session, job, attempt_id=holder.attempt_id, step=step, dir="d", manifest_sha256="0" * 64)


def condemn(session: Session, holder: Holder, *, saved_by: str, step: int) -> None:
    job = attempts.renew(session, holder.attempt_id, job_id=holder.job_id)
    checkpoints.condemn(session, job, reading.checkpoint_id(session, saved_by, step))


def blame(session: Session, holder: Holder, index: int) -> None:
    job = attempts.renew(session, holder.attempt_id, job_id=holder.job_id)
    attempt = attempts.get(session, holder.attempt_id)
    device_health.cordon_broken(session, job, attempt, index=index, why="its memory fails")


def close(
    session: Session, holder: Holder, reason: ExitReason, *, clean: bool = True, seen_beat: int | None = None
) -> None:
    attempts.close(
        session,
        holder.attempt_id,
        job_id=holder.job_id,
        reason=reason,
        message="why",
        devices_clean=clean,
        seen_beat=seen_beat,
    )
