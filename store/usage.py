"""What owners had of the devices lately, and how long their jobs take: read from the attempts, for fair shares and for estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import Integer, case, cast, extract, func, or_, select
from sqlalchemy.orm import Session

from store import ids
from store.db import now
from store.models import Attempt, Job
from store.placement.types import Share
from store.states import OPEN_ATTEMPT, AttemptStatus

HALF_LIFE_S: Final = 24 * 3600.0
"""A device-hour of yesterday counts half of one of today."""
WINDOW: Final = timedelta(seconds=4 * HALF_LIFE_S)
BUCKET_S: Final = 3600
ALL_OWNERS: Final = "*"


@dataclass(frozen=True)
class Usage:
    """`used_device_s` by owner, decayed; `mean_s` of what succeeded, by (owner, preset) and by (owner, "")."""

    used_device_s: Mapping[str, float] = field(default_factory=dict[str, float])
    mean_s: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])

    def typical_s(self, owner: str, preset: str, *, ran_s: float) -> float | None:
        """How much longer such a job goes on that has run for so long already; None where nothing is known, or it is past that."""
        mean_s = self.mean_s.get((owner, preset), self.mean_s.get((owner, "")))
        return mean_s - ran_s if mean_s is not None and mean_s > ran_s else None

    def shares(
        self, owners: Iterable[str], *, quotas: Mapping[str, int], weights: Mapping[str, float]
    ) -> dict[str, Share]:
        """What each of them is due; `*` in the settings stands for all that are not named."""
        return {
            owner: Share(
                weight=weights.get(owner, weights.get(ALL_OWNERS, 1.0)),
                max_devices=quota_of(owner, quotas),
                used_device_s=self.used_device_s.get(owner, 0.0),
            )
            for owner in owners
        }


def quota_of(owner: str, quotas: Mapping[str, int]) -> int | None:
    """How many devices they may hold at once; None: as many as there are."""
    return quotas.get(owner, quotas.get(ALL_OWNERS))


def recent(session: Session) -> Usage:
    """Of the attempts that began within four half-lives, or that are open; each counts the time that its supervisor measured."""
    at = now()
    ended_s = func.coalesce(extract("epoch", Attempt.finished_at), int(at.timestamp()))
    bucket = cast(ended_s / BUCKET_S, Integer)
    succeeded = Attempt.status == AttemptStatus.SUCCEEDED
    rows = session.execute(
        select(
            Job.owner,
            Job.preset,
            bucket,
            func.sum(Job.num_devices * Attempt.ran_s),
            func.sum(case((succeeded, Job.ran_s), else_=0.0)),
            func.sum(case((succeeded, 1), else_=0)),
        )
        .join(Job, Job.id == Attempt.job_id)
        .where(or_(Attempt.id >= ids.floor(at - WINDOW), Attempt.status.in_(OPEN_ATTEMPT)))
        .group_by(Job.owner, Job.preset, bucket)
    ).all()
    used: dict[str, float] = {}
    took: dict[tuple[str, str], tuple[float, float]] = {}
    for owner, preset, hour, device_s, job_s, num_jobs in rows:
        weight = 0.5 ** max(0.0, (at.timestamp() - hour * BUCKET_S) / HALF_LIFE_S)
        used[owner] = used.get(owner, 0.0) + weight * device_s
        for key in ((owner, preset), (owner, "")):
            before_s, before = took.get(key, (0.0, 0.0))
            took[key] = (before_s + weight * job_s, before + weight * num_jobs)
    return Usage(used, {key: job_s / count for key, (job_s, count) in took.items() if count > 0})
