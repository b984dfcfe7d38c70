"""Owns the measure of a whole pass: what is read of a real database, the plan, and what is written back; on a fleet that is all in use."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.simulate.traces import TraceJob
from migrations.upgrade import upgrade
from store import attempts, hosts, jobs
from store.db import Database
from store.jobs import NewJob
from worker.agent.scheduling import Planner

DEVICES = tuple(range(8))


def passes(trace: Sequence[TraceJob], *, num_hosts: int, count: int) -> list[tuple[float, float]]:
    """Seconds of wall and CPU of so many passes over SQLite with the whole trace queued. The first tells everybody; later ones find
    nothing new."""
    with tempfile.TemporaryDirectory(prefix="longyard-simulate-") as directory:
        url = f"sqlite:///{Path(directory) / 'longyard.db'}"
        upgrade(url)
        database = Database(url)
        _fill(database, num_hosts)
        with database.write() as session:
            for job in trace:
                jobs.submit(session, _spec(job), owner=job.owner)
        planner = Planner(database)
        found = [_timed(planner) for _ in range(count)]
        database.dispose()
    return found


def _fill(database: Database, num_hosts: int) -> None:
    names = [f"npu-{number:05}" for number in range(num_hosts)]
    with database.write() as session:
        for name in names:
            hosts.register(session, name, device_type="npu", device_names=["npu"] * 8, boot_id="", versions={})
        for number, name in enumerate(names):
            spec = NewJob("runs", "train_full_8p", {}, 8, "npu", time_limit_s=60.0 * (1 + number))
            job, _ = jobs.submit(session, spec, owner=f"owner-{number % 20:02}")
            attempts.place(session, job.id, host=name, device_indices=DEVICES)


def _spec(job: TraceJob) -> NewJob:
    return NewJob(job.id, "train_full_1p", {}, job.devices, "npu", min(job.priority, 0), time_limit_s=job.limit_s)


def _timed(planner: Planner) -> tuple[float, float]:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    done = planner.run()
    took = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    assert not done.placed, "every device is in use"
    return took
