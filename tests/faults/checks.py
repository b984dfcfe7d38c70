"""K1 to K6: what must be true of every job after any fault. Each raises AssertionError with what is not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from api.log_text import text
from linux.proc import ATTEMPT_VARIABLE
from store import attempts, logs
from store.models import Attempt, LogChunk
from store.states import OPEN_ATTEMPT, AttemptStatus
from tests.faults import witness
from tests.faults.client import TERMINAL
from tests.faults.plane import Plane
from worker.ingest.tail import CHUNK_BYTES
from worker.supervisor import run_lock


def all_of(plane: Plane, job_ids: Iterable[str]) -> None:
    """Every check on jobs that have ended. Processes and devices get the stated time (K6) to be gone and free."""
    jobs = list(job_ids)
    plane.until(lambda: not _what_is_left(plane, jobs), f"nothing is left of {jobs}", stated_s=60)
    assert not (left := _what_is_left(plane, jobs)), left
    nothing_held_twice(plane)
    promises_kept(plane)
    for job_id in jobs:
        learnt_without_a_gap(plane, job_id)
        logs_as_written(plane, job_id)


def learnt_without_a_gap(plane: Plane, job_id: str) -> None:
    """K1, for jobs that `train`: each loss and batch is the uninterrupted run's, each attempt goes on where its checkpoint was."""
    steps = _steps_of(plane, job_id)
    if steps is None:
        return
    expected = witness.uninterrupted(steps)
    seen: set[int] = set()
    losses, batches = plane.client.series(job_id, "loss"), plane.client.series(job_id, "batch")
    for number, points in sorted(losses.items()):
        told = {step: {"batch": batches[number][step], "loss": loss} for step, loss in points.items()}
        assert told == {step: expected[step] for step in points}, f"attempt {number} of {job_id} learnt something else"
        first, last = min(points), max(points)
        assert list(points) == list(range(first, last + 1)), f"attempt {number} of {job_id} lost a step"
        assert first == _resumed_at(plane, job_id, number) + 1, f"attempt {number} of {job_id} began at {first}"
        seen |= set(points)
    if plane.client.status(job_id) == "succeeded":
        assert seen == set(expected), f"{job_id} succeeded without steps {sorted(set(expected) - seen)}"


def logs_as_written(plane: Plane, job_id: str) -> None:
    """K2: the API's log text is the files' bytes but for ranges told as dropped; metrics are those of the file; event seq is dense."""
    events = plane.client.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1)), f"the events of {job_id} have a gap"
    for attempt in _attempts(plane, job_id):
        for rank in range(len(attempt.devices)):
            _log_as_written(plane, attempt, rank)
        _metrics_as_written(plane, attempt)


def nothing_held_twice(plane: Plane) -> None:
    """K3: the kernel refused no rank the lock on its device or on its place in its job."""
    path = plane.settings.data_dir / witness.DIRECTORY / witness.RECORD
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    refused = [line for line in lines if not line["taken"]]
    assert not refused, f"held twice: {refused}"


def promises_kept(plane: Plane) -> None:
    """K4: every job that was answered with 201 is there as it was asked for; what was cancelled ended so, or had succeeded."""
    promises = plane.client.promises
    for job_id, spec in promises.submitted.items():
        job = plane.client.job(job_id)
        assert job["train"]["train_file"] == spec["train"]["train_file"]
        assert job["num_devices"] == spec["num_devices"]
        if job_id in promises.cancelled and job["status"] in TERMINAL:
            assert job["status"] in ("cancelled", "succeeded"), f"{job_id} was cancelled, and is {job['status']}"


def strays(plane: Plane) -> dict[str, list[int]]:
    """K5: the processes that carry an attempt's id, by that id. In one pass over /proc."""
    found: dict[str, list[int]] = {}
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and (name := process.environ().get(ATTEMPT_VARIABLE)):
                found.setdefault(name, []).append(process.pid)
        except psutil.Error:
            continue
    return found


def _what_is_left(plane: Plane, job_ids: list[str]) -> list[str]:
    """K5 in words: open attempts, processes, supervisors and devices of jobs that have ended."""
    alive = strays(plane)
    held = {
        device["job_id"] for host in plane.client.hosts() for device in host["devices"] if device["state"] != "free"
    }
    words: list[str] = []
    for job_id in job_ids:
        status = plane.client.status(job_id)
        if status not in TERMINAL:
            words.append(f"{job_id} is {status}")
        if job_id in held:
            words.append(f"{job_id} holds a device")
        for attempt in _attempts(plane, job_id):
            if attempt.status in OPEN_ATTEMPT:
                words.append(f"attempt {attempt.number} of {job_id} is open")
            if attempt.id in alive:
                words.append(f"attempt {attempt.number} of {job_id} has processes {alive[attempt.id]}")
            if pid := run_lock.holder(plane.run_dir(job_id, attempt.number)):
                words.append(f"attempt {attempt.number} of {job_id} has a supervisor, {pid}")
    return words


def _log_as_written(plane: Plane, attempt: Attempt, rank: int) -> None:
    where = f"the log of rank {rank}, attempt {attempt.number} of {attempt.job_id}"
    path = plane.run_dir(attempt.job_id, attempt.number) / f"r{rank}.log"
    size = path.stat().st_size if path.exists() else 0
    with plane.database.read() as session:
        end = logs.ends(session, attempt.id).get(rank, 0)
        dropped = logs.dropped(session, attempt.id).get(rank, 0)
    # Whoever closed a lost attempt could not see its files: they may hold more than was committed, never less.
    assert end == size or (attempt.status is AttemptStatus.LOST and end < size), f"{where} ends at {end} of {size}"
    kept = _chunks_as_written(plane, attempt, rank, path)
    assert kept + dropped == end, f"{where} lacks bytes that nobody told of"
    if dropped:
        told = [event["data"] for event in plane.client.events(attempt.job_id) if event["kind"] == "log_dropped"]
        assert {"rank": rank, "num_bytes": dropped} in told, f"{where} was cut, and nobody was told"
        return
    position = 0
    for offset, stop, shown in plane.client.log_pages(attempt.job_id, attempt=attempt.number, rank=rank):
        assert offset == position, f"{where}: an answer begins at {offset}, not at {position}"
        assert shown == text(_read(path, offset, stop)), f"{where} is not what was written from {offset} to {stop}"
        position = stop
    assert position == end, f"{where} is told up to {position}, and ends at {end}"


def _chunks_as_written(plane: Plane, attempt: Attempt, rank: int, path: Path) -> int:
    """How many bytes there are; none twice, each as in the file, in pieces of at most 64 KiB."""
    query = (
        select(LogChunk.offset, LogChunk.data)
        .where(LogChunk.attempt_id == attempt.id, LogChunk.rank == rank)
        .order_by(LogChunk.offset)
        .execution_options(yield_per=64)
    )
    position = kept = 0
    with plane.database.read() as session:
        for offset, data in session.execute(query):
            assert offset >= position, f"attempt {attempt.number} of {attempt.job_id} has bytes twice at {offset}"
            assert len(data) <= CHUNK_BYTES
            assert data == _read(path, offset, offset + len(data)), f"{path} was not committed as written at {offset}"
            position, kept = offset + len(data), kept + len(data)
    return kept


def _read(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _metrics_as_written(plane: Plane, attempt: Attempt) -> None:
    """The steps of the file are the steps of the API, once each; more in the file where the attempt was lost."""
    steps = _steps_in(plane.run_dir(attempt.job_id, attempt.number) / "metrics.jsonl")
    told = list(plane.client.series(attempt.job_id, "batch").get(attempt.number, {}))
    whole = told == steps
    assert whole or (attempt.status is AttemptStatus.LOST and told == steps[: len(told)]), (
        f"attempt {attempt.number} of {attempt.job_id}: {len(told)} steps told, {len(steps)} written"
    )


def _steps_in(path: Path) -> list[int]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    reports: list[dict[str, Any]] = []
    for line in lines:
        try:
            reports.append(json.loads(line))
        except ValueError:
            continue
    return [report["step"] for report in reports if report.get("kind") == "metrics" and "batch" in report["values"]]


def _steps_of(plane: Plane, job_id: str) -> int | None:
    """How many steps the job's program trains for; None where it does not."""
    path = Path(plane.client.promises.submitted[job_id]["train"]["train_file"])
    try:
        program = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        return None  # a text, for the real trainer
    return next((operation["steps"] for operation in program if operation["do"] == "train"), None)


def _resumed_at(plane: Plane, job_id: str, number: int) -> int:
    path = plane.run_dir(job_id, number) / "config.json"
    resumed = json.loads(path.read_text())["resume_from_checkpoint"]
    return int(Path(resumed["dir"]).name.removeprefix("step-")) if resumed else 0


def _attempts(plane: Plane, job_id: str) -> list[Attempt]:
    with plane.database.read() as session:
        return list(attempts.of_job(session, job_id))
