from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from store import attempts, metrics
from store.db import Database
from store.metrics import Point
from store.models import Attempt

AT = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)

Append = Callable[[Sequence[Point]], None]


def append(database: Database, attempt: Attempt, *points: Point) -> int:
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        metrics.append(session, job, attempt_id=attempt.id, points=points)
    return job.rev


def test_points_come_back_by_name_and_step(database: Database, running: Attempt) -> None:
    append(database, running, Point("loss", 2, 1.5, AT), Point("loss", 1, 2.5, AT), Point("speed", 1, 9.0, AT))
    with database.read() as session:
        (loss, speed), truncated = metrics.series(session, running.job_id)
    assert (loss.name, loss.attempt, loss.points, loss.extent) == (
        "loss",
        1,
        [(1, 2.5, AT, None), (2, 1.5, AT, None)],
        (1.5, 2.5),
    )
    assert (speed.name, truncated) == ("speed", False)


def test_the_names_of_a_job(database: Database, running: Attempt) -> None:
    append(database, running, *(Point(name, step, 1.0, AT) for name in ("b", "a", "\u00e9") for step in range(3)))
    with database.read() as session:
        assert metrics.names(session, running.job_id, limit=9) == ["a", "b", "\u00e9"]
        assert len(metrics.names(session, running.job_id, limit=2)) == 2


def test_what_is_not_finite_is_told_apart(database: Database, running: Attempt) -> None:
    append(
        database,
        running,
        *(Point("loss", step, value, AT) for step, value in enumerate([math.nan, math.inf, -math.inf])),
    )
    with database.read() as session:
        (loss,), _ = metrics.series(session, running.job_id)
    assert [(value, flag) for _, value, _, flag in loss.points] == [(None, "nan"), (None, "inf"), (None, "-inf")]
    assert loss.extent is None


def test_a_step_reported_again_takes_the_new_value(database: Database, running: Attempt) -> None:
    append(database, running, Point("loss", 1, 1.0, AT))
    append(database, running, Point("loss", 1, 5.0, AT), Point("loss", 1, 7.0, AT))
    with database.read() as session:
        (loss,), _ = metrics.series(session, running.job_id)
    assert [value for _, value, _, _ in loss.points] == [7.0]


def test_thinning_keeps_every_spike(database: Database, running: Attempt) -> None:
    values = [float(step % 7) for step in range(5000)]
    values[1234], values[4321] = 1e6, -1e6
    append(database, running, *(Point("loss", step, value, AT) for step, value in enumerate(values)))
    with database.read() as session:
        (loss,), truncated = metrics.series(session, running.job_id, max_points=100)
    assert truncated
    assert len(loss.points) <= 100
    assert {(1234, 1e6), (4321, -1e6)} <= {(step, value) for step, value, _, _ in loss.points}
    assert [step for step, *_ in loss.points] == sorted(step for step, *_ in loss.points)


def test_ranges_and_names_narrow_the_answer(database: Database, running: Attempt) -> None:
    append(database, running, *(Point(name, step, 1.0, AT) for name in ("a", "b") for step in range(10)))
    with database.read() as session:
        (only,), _ = metrics.series(session, running.job_id, names=["b"], from_step=3, to_step=5)
    assert (only.name, [step for step, *_ in only.points]) == ("b", [3, 4, 5])


def test_the_cursor_gives_what_came_after_it_and_nothing_else(database: Database, running: Attempt) -> None:
    first = append(database, running, Point("loss", 1, 1.0, AT))
    second = append(database, running, Point("loss", 2, 2.0, AT))
    with database.read() as session:
        after_first = metrics.since(session, running.job_id, after_rev=first, limit=10)
        after_second = metrics.since(session, running.job_id, after_rev=second, limit=10)
    assert [(number, point.step) for number, point in after_first] == [(1, 2)]
    assert after_second == []


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=400), st.integers(2, 60))
def test_a_thinned_chart_has_the_extremes_of_the_whole(values: list[float], max_points: int) -> None:
    rows: Any = [SimpleNamespace(step=step, value=value, at=AT, flag=None) for step, value in enumerate(values)]
    kept = metrics._buckets(rows, max_points)
    assert min(row.value for row in kept) == min(values)
    assert max(row.value for row in kept) == max(values)
    assert len(kept) <= max(2, max_points)
