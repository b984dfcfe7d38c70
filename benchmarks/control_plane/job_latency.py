"""Measures a job's way: submit → first log line → done, thirty on two slots, stop → gone, a step → the page's stream."""

from __future__ import annotations

import os
import random
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psutil

from benchmarks.control_plane.http_client import Connection
from benchmarks.control_plane.noop_trainer import LINE
from benchmarks.control_plane.testbed import Rig, cpu_s, until
from benchmarks.report import Line, median, quantile, spread
from worker.supervisor import run_lock

RANDOM_STATE: Final = 7
RAY: Final = "Ray 2.60, other run"


@dataclass(frozen=True)
class Seen:
    """What a client saw of one job, in seconds from before its POST; `parts`: in seconds from the job's making, by its events."""

    first_log_s: float
    done_s: float
    parts: dict[str, float]


def trivial_jobs(rig: Rig, *, count: int) -> list[Line]:
    """One after the other, each after a rest of irregular length, as people submit."""
    pauses = random.Random(RANDOM_STATE)  # noqa: S311
    with rig.connection() as http:
        for _ in range(2):
            _one(rig, http)
        seen: list[Seen] = []
        spent_s = cpu_s(rig)
        for _ in range(count):
            time.sleep(pauses.uniform(0.3, 0.8))
            seen.append(_one(rig, http))
        spent_s = cpu_s(rig) - spent_s
    names = seen[0].parts
    way = ", ".join(f"{name} {1000 * median([one.parts[name] for one in seen]):.0f}" for name in names)
    return [
        *_pair(
            "submit → first log line over HTTP",
            [one.first_log_s for one in seen],
            (80, 200),
            (1110, 1700),
            note=f"ms: {way}; {1000 * spent_s / count:.0f} ms of CPU a job, rank and plane",
        ),
        *_pair(
            "submit → done over HTTP",
            [one.done_s for one in seen],
            (100, 250),
            (1220, 1800),
            note="succeeded, log bytes equal",
        ),
    ]


def thirty_jobs(rig: Rig, *, rounds: int) -> list[Line]:
    times: list[float] = []
    for number in range(rounds):
        with rig.connection() as http:
            label = f"{number}-{time.monotonic_ns()}"
            began = time.perf_counter()
            submitted = {http.submit(rig.spec(round=label)) for _ in range(30)}
            path = f"/jobs?label=round={label}&status=succeeded&limit=100"
            until(
                lambda path=path: len(http.get(path).json()["data"]) == 30, "thirty jobs have succeeded", every_s=0.04
            )
            times.append(time.perf_counter() - began)
            found = {job["id"] for job in http.get(path).json()["data"]}
            if found != submitted:
                raise RuntimeError("other jobs have succeeded than were submitted")
    note = "each succeeded; looked at every 40 ms"
    return [
        Line("30 trivial jobs, 2 slots", median(times), "s", 2, baseline=21.0, source=RAY, spread=spread(times), note=note)
    ]  # fmt: skip


def stops(rig: Rig, *, count: int) -> list[Line]:
    """From before the POST of the cancel until the job is seen cancelled and its rank and its supervisor are gone."""
    with rig.connection() as http:
        times = [_stop(rig, http) for _ in range(count)]
    return _pair(
        "stop → every process gone and closed",
        times,
        (50, 150),
        (1440, 2020),
        note="rank and supervisor reaped, job cancelled",
    )


def steps(rig: Rig, *, count: int) -> list[Line]:
    """A report carries when it was written, by the clock that all processes of a machine share."""
    delays: dict[int, float] = {}
    with rig.connection() as http:
        job_id = http.submit(rig.spec(f"steps {count}"))
        with http.stream(f"/jobs/{job_id}/stream") as messages:
            for message in messages:
                now = time.monotonic()
                if message.kind == "metrics":
                    for step, written, *_ in message.data["series"]["written"]:
                        delays.setdefault(step, now - written)
                if message.kind == "end":
                    break
        _check(http, job_id)
    if sorted(delays) != list(range(1, count + 1)):
        raise RuntimeError(f"{len(delays)} of {count} steps arrived")
    return _pair(
        "step written → on the page's stream",
        list(delays.values()),
        (300, 700),
        (None, None),
        note=f"all {count} steps arrived",
    )


def _one(rig: Rig, http: Connection) -> Seen:
    began = time.perf_counter()
    job_id = http.submit(rig.spec())
    first_log_s = done_s = 0.0
    with http.stream(f"/jobs/{job_id}/stream") as messages:
        for message in messages:
            now = time.perf_counter() - began
            if message.kind == "log" and not first_log_s:
                first_log_s = now
            if message.kind == "job" and message.data["status"] not in ("queued", "running"):
                done_s = now
                break
    if not first_log_s or not done_s:
        raise RuntimeError("the stream ended without a log line or without the job's end")
    _check(http, job_id)
    return Seen(first_log_s, done_s, _parts(http.get(f"/jobs/{job_id}/events").json()["data"]))


def _check(http: Connection, job_id: str) -> None:
    """It did what it was to do: it has succeeded, and its log has the bytes that its rank wrote."""
    job = http.get(f"/jobs/{job_id}").json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"the job {job['status']}: {job['status_reason']}")
    log = http.get(f"/jobs/{job_id}/logs").body
    if log != f"{LINE}\n".encode():
        raise RuntimeError(f"its log is {log[:200]!r}")


def _parts(events: list[dict[str, Any]]) -> dict[str, float]:
    at = {event["kind"]: datetime.fromisoformat(event["at"]).timestamp() for event in events}
    return {kind: at[kind] - at["submitted"] for kind in ("placed", "attempt_started", "attempt_closed")}


def _stop(rig: Rig, http: Connection) -> float:
    job_id = http.submit(rig.spec("wait"))
    until(lambda: f"{LINE}\n".encode() in http.get(f"/jobs/{job_id}/logs").body, "its rank waits")
    supervisor = run_lock.holder(rig.settings.run_dir(job_id, 1))
    if supervisor is None:
        raise RuntimeError("the job has no supervisor")
    ranks = [one.pid for one in psutil.Process(supervisor).children(recursive=True)]
    if len(ranks) != 1:
        raise RuntimeError(f"the job has {len(ranks)} ranks")
    with ExitStack() as stack:
        descriptors = [os.pidfd_open(pid) for pid in (supervisor, *ranks)]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        messages = stack.enter_context(http.stream(f"/jobs/{job_id}/stream"))
        _read_until(messages, lambda job: job["status"] == "running")
        began = time.perf_counter()
        http.post(f"/jobs/{job_id}/cancel").json()
        _read_until(messages, lambda job: job["status"] == "cancelled")
        for descriptor in descriptors:
            if not select.select([descriptor], [], [], 10)[0]:
                raise RuntimeError("a process is left 10 s after the job was closed")
        return time.perf_counter() - began


def _read_until(messages: Any, is_it: Callable[[dict[str, Any]], bool]) -> None:
    next(message for message in messages if message.kind == "job" and is_it(message.data))


def _pair(
    name: str,
    times_s: list[float],
    targets: tuple[float, float],
    peers: tuple[float | None, float | None],
    *,
    note: str,
) -> list[Line]:
    times = [1000 * one for one in times_s]
    source = RAY if peers[0] else ""
    return [
        Line(
            f"{name}, p50",
            median(times),
            "ms",
            targets[0],
            baseline=peers[0],
            source=source,
            spread=spread(times),
            note=note,
        ),
        Line(f"{name}, p99", quantile(times, 0.99), "ms", targets[1], baseline=peers[1], source=source),
    ]
