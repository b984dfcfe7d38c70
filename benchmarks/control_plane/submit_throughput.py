"""Measures POST /jobs and GET /jobs while a worker plans and both of its slots are taken: what is submitted stays in the queue."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, insert, select

from benchmarks.control_plane.http_client import Connection
from benchmarks.control_plane.testbed import Rig, cpu_s, until
from benchmarks.report import Line, median, quantile, spread
from store import ids
from store.db import Database
from store.models import Attempt, Job
from store.states import AttemptStatus, ExitReason, Intent, JobStatus

CONNECTIONS: Final = 32
WARM_UP: Final = 10
RAY: Final = "Ray Jobs 2.60, other run"


def posts(rig: Rig, *, alone: int, together: int, where: str) -> list[Line]:
    """By one client, then by 32. What was submitted stays in the queue: the last thing to be measured on a plane."""
    with rig.connection() as http:
        blocker = http.submit(rig.spec("wait", num_devices=2) | {"priority": 100})
        until(lambda: http.get(f"/jobs/{blocker}").json()["status"] == "running", "the blocking job runs")
        return [*_one_client(rig, http, count=alone, where=where), *_many_clients(rig, count=together, where=where)]


def lists(rig: Rig, *, count: int) -> list[Line]:
    """The first page of 50, with 300 and then with 10,000 finished jobs in the database, written in bulk with an attempt each."""
    lines: list[Line] = []
    baselines = ((300, 15.0, 61.0, "Ray, 313 jobs, other run"), (10_000, 20.0, 141.0, "MLflow, 1,000 runs, other run"))
    for total, target, baseline, source in baselines:
        with rig.database() as database:
            fill(database, host="bench", upto=total)
        with rig.connection() as http:
            for _ in range(3):
                http.get("/jobs")
            api_s, times = cpu_s(rig, "api"), list[float]()
            for _ in range(count):
                began = time.perf_counter()
                page = http.get("/jobs").json()
                times.append(1000 * (time.perf_counter() - began))
                if len(page["data"]) != 50 or not page["has_more"] or page["data"][0]["id"] < page["data"][-1]["id"]:
                    raise RuntimeError("the first page is not the newest 50 jobs of more")
            api_s = cpu_s(rig, "api") - api_s
        note = f"50 jobs with their attempts, no cache; {1000 * api_s / count:.1f} ms of the API's CPU each"
        lines.append(
            Line(
                f"list: first page of {total:,}", median(times), "ms", target, baseline=baseline, source=source,
                spread=spread(times), note=note,
            )
        )  # fmt: skip
    return lines


def fill(database: Database, *, host: str, upto: int) -> None:
    """Jobs that have succeeded, each with its attempt, until there are `upto`."""
    with database.write() as session:
        missing = upto - (session.scalar(select(func.count()).select_from(Job)) or 0)
        rows = [_finished(number, host) for number in range(max(0, missing))]
        if rows:
            session.execute(insert(Job), [job for job, _ in rows])
            session.execute(insert(Attempt), [attempt for _, attempt in rows])


def _finished(number: int, host: str) -> tuple[dict[str, Any], dict[str, Any]]:
    ended = datetime.now(UTC)
    began = ended - timedelta(seconds=60)
    job_id = ids.new()
    train = {
        "train_file": "/data/train.txt",
        "tokenizer_name": "/data/tokenizer",
        "max_steps": number,
        "learning_rate": 5e-5,
    }
    job = {
        "id": job_id, "owner": "admin", "name": f"bulk-{number}", "preset": "demo", "train": train, "num_devices": 1,
        "device_type": "cpu", "priority": 0, "labels": {"bulk": str(number)}, "status": JobStatus.SUCCEEDED, "intent": Intent.RUN,
        "strikes": 0, "retry_delay_s": 0.0, "num_attempts": 1, "num_events": 0, "rev": 5, "step": 300, "total_steps": 300,
        "phase": "end", "result": {"perplexity": 2.5, "fps": 100.0, "epochs": 1.0}, "created_at": began, "started_at": began,
        "finished_at": ended,
    }  # fmt: skip
    attempt = {
        "id": ids.new(), "job_id": job_id, "number": 1, "host": host, "device_type": "cpu", "devices": [0],
        "status": AttemptStatus.SUCCEEDED, "exit_reason": ExitReason.COMPLETED, "beat": 3, "metrics_offset": 0, "step": 300,
        "created_at": began, "started_at": began, "finished_at": ended,
    }  # fmt: skip
    return job, attempt


def _one_client(rig: Rig, http: Connection, *, count: int, where: str) -> list[Line]:
    for _ in range(WARM_UP):
        http.submit(rig.spec())
    before, api_s = _num_jobs(rig), cpu_s(rig, "api")
    times = [1000 * _timed_submit(http, rig) for _ in range(count)]
    api_s = cpu_s(rig, "api") - api_s
    note = f"{_proven(rig, before, count)}; {1000 * api_s / count:.1f} ms of the API's CPU each"
    name = f"POST /jobs, one client, {where}"
    return [
        Line(f"{name}, p50", median(times), "ms", 5, baseline=16, source=RAY, spread=spread(times), note=note),
        Line(f"{name}, p99", quantile(times, 0.99), "ms", 15, baseline=23, source=RAY),
    ]


def _many_clients(rig: Rig, *, count: int, where: str) -> list[Line]:
    """`count` submissions over 32 connections at once; every answer must be a 201."""
    times: list[float] = []
    failures: list[str] = []
    barrier = threading.Barrier(CONNECTIONS + 1)

    def client() -> None:
        with rig.connection() as http:
            http.get("/healthz")
            barrier.wait()
            for _ in range(count // CONNECTIONS):
                try:
                    times.append(1000 * _timed_submit(http, rig))
                except (OSError, RuntimeError) as error:
                    failures.append(str(error))

    before, api_s = _num_jobs(rig), cpu_s(rig, "api")
    threads = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    api_s = cpu_s(rig, "api") - api_s
    name = f"POST /jobs, {CONNECTIONS} connections, {where}"
    if failures:
        why = f"{len(failures)} of {len(failures) + len(times)} failed: {failures[0][:120]}"
        return [Line(name, None, "/s", 500, "higher", why=why)]
    note = f"{_proven(rig, before, len(times))}; no error; {1000 * api_s / len(times):.1f} ms of the API's CPU each"
    return [
        Line(name, len(times) / took_s, "/s", 500, "higher", note=note),
        Line(f"{name}, p99", quantile(times, 0.99), "ms", 150, spread=spread(times)),
    ]


def _timed_submit(http: Connection, rig: Rig) -> float:
    spec = rig.spec()
    began = time.perf_counter()
    answer = http.post("/jobs", spec)
    took_s = time.perf_counter() - began
    if answer.status != 201:
        raise RuntimeError(f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}")
    return took_s


def _proven(rig: Rig, before: int, count: int) -> str:
    rows = _num_jobs(rig) - before
    if rows != count:
        raise RuntimeError(f"{count} submissions were answered 201, and {rows} rows were written")
    return f"{rows} rows found"


def _num_jobs(rig: Rig) -> int:
    with rig.database() as database, database.read() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0
