"""Measures metric points: from the file a rank writes into the database, and from there onto a chart."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.control_plane.noop_trainer import SERIES, point_value
from benchmarks.control_plane.testbed import Rig, until
from benchmarks.report import Line, median, spread
from store import attempts, jobs, metrics
from store.db import Database
from store.jobs import NewJob
from store.metrics import Point
from store.states import ExitReason

CHART: Final = 100_000
SPIKE_AT: Final = 61_803
SPIKE: Final = 1e6
MAX_POINTS: Final = 1000


def ingestion(rig: Rig, *, num_jobs: int, count: int) -> list[Line]:
    """Each job's rank appends `count` points in one write; done when the end of every file is a committed offset."""
    count -= count % SERIES
    with rig.connection() as http, rig.database() as database:
        before = _bytes(database)
        job_ids = [http.submit(rig.spec(f"points {count}")) for _ in range(num_jobs)]
        until(
            lambda: all(_is_read(database, rig, job_id) for job_id in job_ids),
            "every point is committed",
            every_s=0.005,
        )
        ended = time.monotonic()
        for job_id in job_ids:
            _prove(database, job_id, count)
        size = (_bytes(database) - before) / (count * num_jobs)
        began = min(float(http.get(f"/jobs/{job_id}/logs").body.split()[-1]) for job_id in job_ids)
        for job_id in job_ids:
            http.post(f"/jobs/{job_id}/cancel").json()
        until(
            lambda: all(http.get(f"/jobs/{one}").json()["status"] == "cancelled" for one in job_ids),
            "all are cancelled",
        )
    rate = count * num_jobs / (ended - began)
    note = f"{count * num_jobs:,} rows and their sums found"
    if num_jobs > 1:
        name, source = f"metric points, file → database, {num_jobs} jobs", "MLflow log_batch, other run"
        return [Line(name, rate, "/s", 300_000, "higher", 14_336.0, source, note=note)]
    return [
        Line(
            "metric points, file → database, one job", rate, "/s", 200_000, "higher", 6978.0, "MLflow log_batch, other run",
            note=note,
        ),
        Line("a metric point in the database", size, "bytes", 6, note="growth of the database, in pages in use"),
    ]  # fmt: skip


def chart(rig: Rig, *, count: int) -> list[Line]:
    """One series of 100,000 points with one spike, asked for with another beginning each time: no answer was given before."""
    with rig.database() as database, database.write() as session:
        job_id = _write_series(session)
    times: list[float] = []
    with rig.connection() as http:
        for number in range(count):
            began = time.perf_counter()
            body = http.get(f"/jobs/{job_id}/metrics?names=loss&from_step={number}").json()
            times.append(1000 * (time.perf_counter() - began))
            shown = {step: value for step, value, *_ in body["series"][0]["points"]}
            # A bucket shows its least and its greatest: the last step is in a bucket's width of the last one shown.
            if shown.get(SPIKE_AT) != SPIKE or len(shown) > MAX_POINTS or max(shown) < CHART - 2 * CHART // MAX_POINTS:
                raise RuntimeError("the chart has lost its spike or its end")
    note = f"the spike kept, at most {MAX_POINTS} points answered, each request another range"
    return [
        Line(
            f"chart of {CHART:,} points", median(times), "ms", 20, baseline=371, source="MLflow, other run",
            spread=spread(times), note=note,
        ),
        Line("chart of 10,000,000 points", None, "ms", 100, why="writing ten million rows one by one would take minutes"),
    ]  # fmt: skip


def _is_read(database: Database, rig: Rig, job_id: str) -> bool:
    """Whether the supervisor has committed all of a file that holds anything."""
    with database.read() as session:
        attempt = attempts.newest(session, job_id)
    file = rig.settings.run_dir(job_id, 1) / "metrics.jsonl"
    return attempt is not None and 0 < attempt.metrics_offset == file.stat().st_size


def _prove(database: Database, job_id: str, count: int) -> None:
    expected = sum(point_value(step, number) for step in range(count // SERIES) for number in range(SERIES))
    with database.read() as session:
        series, _ = metrics.series(session, job_id, max_points=count)
    found = [value for one in series for _, value, _, _ in one.points if value is not None]
    if len(found) != count or abs(sum(found) - expected) > 1e-9 * expected:
        raise RuntimeError(f"{len(found)} of {count} points are in the database")


def _bytes(database: Database) -> int:
    """In pages that are in use; the write-ahead log's are counted once."""
    with database.read() as session:
        pages, free, size = (
            session.scalar(text(f"PRAGMA {name}")) or 0 for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


def _write_series(session: Session) -> str:
    """A job that has ended, with its points, in the transaction of the caller."""
    job, _ = jobs.submit(session, NewJob("chart", "demo", {}, 1, "cpu"), owner="admin")
    attempt = attempts.place(session, job.id, host="bench", device_indices=[0])
    attempts.begin(session, attempt.id, job_id=job.id, boot_id="")
    at = datetime.now(UTC)
    points = [Point("loss", step, SPIKE if step == SPIKE_AT else 1 / (1 + step), at) for step in range(CHART)]
    metrics.append(session, job, attempt_id=attempt.id, points=points)
    attempts.close(
        session, attempt.id, job_id=job.id, reason=ExitReason.COMPLETED, message=None, devices_clean=True, result={}
    )
    return job.id
