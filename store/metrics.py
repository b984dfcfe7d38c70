"""Metric points: append a batch, read series for a chart, read what came after a cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Integer, Row, Select, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.models import Attempt, Job, MetricPoint

ROWS_A_STATEMENT: Final = 500
MAX_SERIES: Final = 50

_SINCE: Final = (
    select(Attempt.number, MetricPoint)
    .join(Attempt, Attempt.id == MetricPoint.attempt_id)
    .where(MetricPoint.job_id == bindparam("job_id"), MetricPoint.rev > bindparam("after_rev"))
    .order_by(MetricPoint.rev, MetricPoint.name, MetricPoint.step)
    .limit(bindparam("limit", type_=Integer))
)

_NEXT_NAME: Final = select(func.min(MetricPoint.name)).where(
    MetricPoint.attempt_id == bindparam("attempt_id"), MetricPoint.name > bindparam("after")
)

_PointRow = Row[int, float | None, datetime, str | None]


@dataclass(frozen=True)
class Point:
    """One value of one series. NaN and infinities are kept, by `flag`."""

    name: str
    step: int
    value: float
    at: datetime


@dataclass(frozen=True)
class Series:
    """The points of one name in one attempt, by step: (step, value or None, time, flag or None). `bucketed`: thinned for a chart."""

    name: str
    attempt: int
    points: Sequence[tuple[int, float | None, datetime, str | None]]
    bucketed: bool

    @property
    def extent(self) -> tuple[float, float] | None:
        """The least and the greatest finite value, or None."""
        finite = [value for _, value, _, _ in self.points if value is not None]
        return (min(finite), max(finite)) if finite else None


def append(session: Session, job: Job, *, attempt_id: str, points: Sequence[Point]) -> None:
    """In a transaction that `attempts.renew` opened. A step that is there already takes the new value."""
    newest = {(point.name, point.step): point for point in points}
    rows = [_row(job, attempt_id, point) for point in newest.values()]
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        statement = insert(MetricPoint).values(rows[start : start + ROWS_A_STATEMENT])
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["attempt_id", "name", "step"],
                set_={name: statement.excluded[name] for name in ("rev", "value", "flag", "at")},
            )
        )


def series(
    session: Session,
    job_id: str,
    *,
    names: Sequence[str] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    max_points: int = 1000,
) -> tuple[list[Series], bool]:
    """One series a name and attempt, at most `MAX_SERIES`; each of at most `max_points` points.

    Above that the steps fall into buckets of equal width, and each bucket gives its least, its greatest and every non-finite
    point, so no spike is lost. The flag says whether anything was thinned or left out.
    """
    chosen = _series_of(session, job_id, names)
    answer: list[Series] = []
    for attempt_id, attempt, name in chosen[:MAX_SERIES]:
        rows = session.execute(_points(attempt_id, name, from_step, to_step)).all()
        bucketed = len(rows) > max_points
        kept = _buckets(rows, max_points) if bucketed else rows
        answer.append(Series(name, attempt, [(row.step, row.value, row.at, row.flag) for row in kept], bucketed))
    return answer, len(chosen) > MAX_SERIES or any(one.bucketed for one in answer)


def names(session: Session, job_id: str, *, limit: int) -> Sequence[str]:
    """Of a job's series over all attempts, by name. Costs a look a name, however many points there are."""
    found: set[str] = set()
    for attempt_id in session.scalars(select(Attempt.id).where(Attempt.job_id == job_id).order_by(Attempt.number)):
        after: str | None = ""
        while len(found) < limit and after is not None:
            after = session.scalar(_NEXT_NAME, {"attempt_id": attempt_id, "after": after})
            found |= set() if after is None else {after}
    return sorted(found)


def since(session: Session, job_id: str, *, after_rev: int, limit: int) -> Sequence[tuple[int, MetricPoint]]:
    """What was written after the cursor, with the attempt's number, in the order of writing."""
    rows = session.execute(_SINCE, {"job_id": job_id, "after_rev": after_rev, "limit": limit}).all()
    return [(number, point) for number, point in rows]


def _row(job: Job, attempt_id: str, point: Point) -> dict[str, Any]:
    finite = math.isfinite(point.value)
    return {
        "attempt_id": attempt_id,
        "name": point.name,
        "step": point.step,
        "job_id": job.id,
        "rev": job.rev,
        "value": point.value if finite else None,
        "flag": None if finite else "nan" if math.isnan(point.value) else "inf" if point.value > 0 else "-inf",
        "at": point.at,
    }


def _series_of(session: Session, job_id: str, names: Sequence[str] | None) -> list[tuple[str, int, str]]:
    query = (
        select(Attempt.id, Attempt.number, MetricPoint.name)
        .join(MetricPoint, MetricPoint.attempt_id == Attempt.id)
        .where(Attempt.job_id == job_id)
        .distinct()
        .order_by(MetricPoint.name, Attempt.number)
    )
    if names is not None:
        query = query.where(MetricPoint.name.in_(names))
    return [(attempt_id, number, name) for attempt_id, number, name in session.execute(query)]


def _points(
    attempt_id: str, name: str, from_step: int | None, to_step: int | None
) -> Select[int, float | None, datetime, str | None]:
    query = (
        select(MetricPoint.step, MetricPoint.value, MetricPoint.at, MetricPoint.flag)
        .where(MetricPoint.attempt_id == attempt_id, MetricPoint.name == name)
        .order_by(MetricPoint.step)
    )
    if from_step is not None:
        query = query.where(MetricPoint.step >= from_step)
    if to_step is not None:
        query = query.where(MetricPoint.step <= to_step)
    return query


def _buckets(rows: Sequence[_PointRow], max_points: int) -> list[_PointRow]:
    first, last = rows[0].step, rows[-1].step
    width = max(1.0, (last - first + 1) / max(1, max_points // 2))
    buckets: dict[int, list[_PointRow]] = {}
    for row in rows:
        buckets.setdefault(int((row.step - first) / width), []).append(row)
    return [row for _, bucket in sorted(buckets.items()) for row in _outstanding(bucket)]


def _outstanding(bucket: Sequence[_PointRow]) -> list[_PointRow]:
    finite = [row for row in bucket if row.value is not None]
    kept = {id(row): row for row in bucket if row.value is None}
    if finite:
        least, greatest = min(finite, key=lambda row: row.value or 0.0), max(finite, key=lambda row: row.value or 0.0)
        kept |= {id(least): least, id(greatest): greatest}
    return sorted(kept.values(), key=lambda row: row.step)
