"""Checkpoints: a directory of files becomes one when its row is committed under the fence."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import events, ids
from store.db import now
from store.models import Attempt, Checkpoint, Job


def publish(session: Session, job: Job, *, attempt_id: str, step: int, dir: str, manifest_sha256: str) -> None:
    """In a transaction that `attempts.renew` opened. Progress has been made: the strikes are forgotten.

    A step that is there already was written anew: it takes the new manifest.
    """
    checkpoint = session.scalars(
        select(Checkpoint).where(Checkpoint.attempt_id == attempt_id, Checkpoint.step == step)
    ).first()
    if checkpoint is None:
        checkpoint = Checkpoint(id=ids.new(), job_id=job.id, attempt_id=attempt_id, step=step, created_at=now())
        session.add(checkpoint)
    checkpoint.rev, checkpoint.dir, checkpoint.manifest_sha256 = job.rev, dir, manifest_sha256
    job.strikes = 0
    events.append(session, job, kind="checkpoint", step=step, dir=dir)


def newest_first(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Those a next attempt may resume from, best first; it takes the first whose manifest verifies."""
    return session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc(), Checkpoint.id.desc())
    ).all()


def of_job(session: Session, job_id: str) -> Sequence[tuple[int, Checkpoint]]:
    """With their attempts' numbers, oldest first."""
    rows = session.execute(
        select(Attempt.number, Checkpoint)
        .join(Attempt, Attempt.id == Checkpoint.attempt_id)
        .where(Checkpoint.job_id == job_id)
        .order_by(Checkpoint.id)
    ).all()
    return [(number, checkpoint) for number, checkpoint in rows]
