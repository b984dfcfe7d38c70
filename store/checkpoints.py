"""Checkpoints: a directory of files becomes one when its row is committed under the fence, until somebody finds that it is not whole."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import events, ids
from store.db import now
from store.models import Attempt, Checkpoint, Job

_IS_USABLE = Checkpoint.unusable_at.is_(None)


def publish(session: Session, job: Job, *, attempt_id: str, step: int, dir: str, manifest_sha256: str) -> None:
    """In a transaction that `attempts.renew` opened. A step beyond every earlier one is progress: the strikes are forgotten.

    A step that is there already was written anew: it takes the new manifest.
    """
    best = session.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job.id, _IS_USABLE))
    checkpoint = session.scalars(
        select(Checkpoint).where(Checkpoint.attempt_id == attempt_id, Checkpoint.step == step)
    ).first()
    if checkpoint is None:
        checkpoint = Checkpoint(id=ids.new(), job_id=job.id, attempt_id=attempt_id, step=step, created_at=now())
        session.add(checkpoint)
    checkpoint.rev, checkpoint.dir, checkpoint.manifest_sha256 = job.rev, dir, manifest_sha256
    checkpoint.unusable_at = None
    if best is None or step > best:
        job.strikes = 0
    events.append(session, job, kind="checkpoint", step=step, dir=dir)


def condemn(session: Session, job: Job, checkpoint_id: str) -> None:
    """In a transaction that `attempts.renew` opened: its files are not what was published, so nobody looks at it again."""
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is not None and checkpoint.unusable_at is None:
        checkpoint.unusable_at = now()
        events.append(session, job, kind="checkpoint_corrupt", step=checkpoint.step, dir=checkpoint.dir)


def newest_first(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Those a next attempt may resume from, best first; it takes the first whose manifest verifies."""
    return session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, _IS_USABLE)
        .order_by(Checkpoint.step.desc(), Checkpoint.id.desc())
    ).all()


def of_job(session: Session, job_id: str) -> Sequence[tuple[int, Checkpoint]]:
    """Those that are whole as far as anybody knows, with their attempts' numbers, oldest first."""
    rows = session.execute(
        select(Attempt.number, Checkpoint)
        .join(Attempt, Attempt.id == Checkpoint.attempt_id)
        .where(Checkpoint.job_id == job_id, _IS_USABLE)
        .order_by(Checkpoint.id)
    ).all()
    return [(number, checkpoint) for number, checkpoint in rows]
