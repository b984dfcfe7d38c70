"""Measures what the plane weighs and how fast it starts: idle memory, one supervisor, launch message → first row, cold start."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Final
from unittest import mock

from benchmarks.control_plane import testbed as rigs
from benchmarks.control_plane.http_client import Connection
from benchmarks.control_plane.testbed import Rig, memory_mib, pss_mib, until
from benchmarks.report import Line, median, spread
from migrations.upgrade import upgrade
from store import attempts, hosts, jobs
from store.db import Database
from store.jobs import NewJob
from store.settings import Settings
from store.states import AttemptStatus
from worker.forkserver.server import Launcher
from worker.supervisor.startup import Launch

IDLE_S: Final = 2.0
SETTLE_S: Final = 0.5
FULL_HOST: Final = 8


def idle(rig: Rig) -> list[Line]:
    """Every process of the plane, some seconds after the last request."""
    until(lambda: any(name == "ly-launcher" for name, _ in rig.parts()), "the launcher is up")
    time.sleep(IDLE_S)
    weights = [(name, pss_mib(one.pid)) for name, one in rig.parts()]
    note = ", ".join(f"{name} {weight:.0f}" for name, weight in weights)
    total = sum(weight for _, weight in weights)
    return [
        Line(
            "idle memory of the whole plane, PSS",
            total,
            "MiB",
            250,
            baseline=241,
            source="dstack, server only, other run",
            note=note,
        )
    ]


def supervisors() -> list[Line]:
    """One alone on its host, and each of eight on a host that is full: what they share is divided among more."""
    with rigs.running(slots=FULL_HOST) as rig, rig.connection() as http:
        jobs_ids = [_waiting(rig, http)]
        alone, own = _weights(rig, "Pss"), _weights(rig, "Private_Clean", "Private_Dirty")
        jobs_ids += [_waiting(rig, http) for _ in range(FULL_HOST - 1)]
        time.sleep(SETTLE_S)
        together = _weights(rig, "Pss")
        for job_id in jobs_ids:
            http.post(f"/jobs/{job_id}/cancel").json()
        until(
            lambda: all(http.get(f"/jobs/{job_id}").json()["status"] == "cancelled" for job_id in jobs_ids),
            "all are cancelled",
        )
    if (len(alone), len(together)) != (1, FULL_HOST):
        raise RuntimeError(f"{len(together)} supervisors for {FULL_HOST} jobs")
    note = f"{own[0]:.0f} MiB are its own, the rest its launcher's pages, halved between the two"
    return [
        Line("a supervisor, PSS, alone on its host", alone[0], "MiB", 20, note=note),
        Line("a supervisor, PSS, each of eight on a host", median(together), "MiB", 20, spread=spread(together)),
    ]


def _waiting(rig: Rig, http: Connection) -> str:
    """A job whose rank has said that it waits."""
    job_id = http.submit(rig.spec("wait"))
    until(lambda: http.get(f"/jobs/{job_id}/logs").body.endswith(b"\n"), "its rank waits")
    time.sleep(SETTLE_S)
    return job_id


def _weights(rig: Rig, *rows: str) -> list[float]:
    """The sum of these rows of each supervisor's memory, in MiB."""
    pids = [one.pid for name, one in rig.parts() if name == "ly-supervisor"]
    return [sum(memory_mib(pid, row) for row in rows) for pid in pids]


def launches(*, count: int) -> list[Line]:
    """A launcher as the worker starts it, on a database of its own: from the message until another process can read the row."""
    with tempfile.TemporaryDirectory(prefix="longyard-bench-") as root:
        settings = Settings(data_dir=Path(root) / "data", database_url="", host_name="bench")
        settings.data_dir.mkdir()
        upgrade(settings.db_url)
        database = Database(settings.db_url, busy_timeout_s=30.0)
        environment = {
            "LONGYARD_DATA_DIR": str(settings.data_dir),
            "LONGYARD_DATABASE_URL": "",
            "LONGYARD_HOST_NAME": "bench",
        }
        with mock.patch.dict(os.environ, environment):
            launcher = Launcher()
        try:
            until(lambda: any(told.kind == "ready" for told in launcher.heard()), "the launcher is ready")
            times = [_launch(launcher, database) for _ in range(count)]
        finally:
            launcher.close()
            database.dispose()
    ms = [1000 * one for one in times]
    return [
        Line(
            "launch message → first committed row",
            median(ms),
            "ms",
            50,
            spread=spread(ms),
            note="read by another process",
        )
    ]


def cold_starts(first: Rig, *, count: int) -> list[Line]:
    """`longyard up` in an empty directory → the first 200 to an authenticated GET /jobs; migrations included."""
    times = [first.started_s]
    for _ in range(count - 1):
        with rigs.running() as rig:
            times.append(rig.started_s)
    return [
        Line("cold start to the first 200", median(times), "s", 2, baseline=4.0, source="Ray, other run", spread=spread(times))
    ]  # fmt: skip


def _launch(launcher: Launcher, database: Database) -> float:
    """One attempt whose inputs are refused after it has begun: its first row is the begin's."""
    with database.write() as session:
        hosts.register(session, "bench", device_type="cpu", device_names=["slot"], boot_id="", versions={})
        job, _ = jobs.submit(session, NewJob("bench", "demo", {}, 1, "cpu"), owner="admin")
        attempt = attempts.place(session, job.id, host="bench", device_indices=[0])
    request = Launch.of(attempt, cpu_threads=1, simulated=False)
    began = time.perf_counter()
    if not launcher.launch(request):
        raise RuntimeError("the launcher takes no request")
    while True:
        with database.read() as session:
            status = attempts.get(session, attempt.id).status
        if status is not AttemptStatus.STARTING:
            took_s = time.perf_counter() - began
            break
        if time.perf_counter() - began > rigs.PATIENCE_S:
            raise TimeoutError("no row of the supervisor")
        time.sleep(0.0005)
    until(lambda: any(told.kind == "ended" for told in launcher.heard()), "the supervisor has ended")
    return took_s
