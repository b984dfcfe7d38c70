"""The timeline of a job: append, and read by sequence or by cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Integer, bindparam, select
from sqlalchemy.orm import Session

from store.db import now
from store.models import Event, Job

_SINCE: Final = (
    select(Event)
    .where(Event.job_id == bindparam("job_id"), Event.rev > bindparam("after_rev"))
    .order_by(Event.rev, Event.seq)
    .limit(bindparam("limit", type_=Integer))
)
"""Built once: streams ask it at every wake-up, and building it costs as much as running it."""


def append(session: Session, job: Job, *, kind: str, **data: Any) -> Event:
    """Add the next fact; `job` comes from `jobs.touch` in the same transaction, so its row is locked and `seq` stays dense."""
    event = following(job, kind=kind, **data)
    session.add(event)
    return event


def following(job: Job, *, kind: str, **data: Any) -> Event:
    """The next fact, counted on the job and in no session yet: for who stores it together with others."""
    job.num_events += 1
    return Event(job_id=job.id, seq=job.num_events, rev=job.rev, kind=kind, data=data, at=now())


def has(session: Session, job_id: str, *, kind: str, data: Mapping[str, Any]) -> bool:
    """Whether this was told before, with whatever else."""
    told = session.scalars(select(Event.data).where(Event.job_id == job_id, Event.kind == kind))
    return any(data.items() <= one.items() for one in told)


def page(session: Session, job_id: str, *, after: int = 0, limit: int = 100) -> Sequence[Event]:
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    ).all()


def since(session: Session, job_id: str, *, after_rev: int, limit: int) -> Sequence[Event]:
    return session.scalars(_SINCE, {"job_id": job_id, "after_rev": after_rev, "limit": limit}).all()
