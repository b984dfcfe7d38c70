"""PostgreSQL behind ways that can be cut: away (F9), answers that are lost (F10), one host cut off (F11) or standing still (F12)."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select

from linux.proc import boottime
from store.models import Attempt, LogChunk
from tests import postgres
from tests.faults import injections, programs, proxy
from tests.faults import plane as planes
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings
from tests.worker.processes import is_running

PARTS = ("api", "worker a", "worker b")


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, postgres_template: str, timings: Timings
) -> Iterator[Plane]:
    """Hosts a with two devices and b with four; each part has a way of its own to the database."""
    name = postgres.create(postgres_server, template=postgres_template)
    url = postgres.url(postgres_server, name)
    ways = {part: proxy.to_postgres(url) for part in PARTS}
    with planes.running(
        tmp_path_factory.mktemp("plane"),
        timings,
        devices={"a": 2, "b": 4},
        database_url=url,
        ways={part: way for part, (way, _) in ways.items()},
        part_variables={part: {"LONGYARD_DATABASE_URL": through} for part, (_, through) in ways.items()},
    ) as plane:
        yield plane
    postgres.drop(postgres_server, name)


def test_f9_the_database_away_from_everybody(plane: Plane, gate: Path) -> None:
    """Training goes on while a lease allows it; the API says when to come back; afterwards everything is there, once."""
    job_id = plane.submit(lesson(120, step_s=0.005, hold_at=10, gate=gate), num_devices=2)
    programs.until_step(plane, job_id, 10)
    progress = plane.run_dir(job_id) / "r0.progress"
    with ExitStack() as cuts:
        for way in plane.ways.values():
            cuts.enter_context(way.cut())
        before = progress.read_bytes()
        gate.touch()
        plane.until(lambda: progress.read_bytes() != before, "training goes on", stated_s=5)
        answer = plane.client.once("POST", "/jobs", json=plane.spec(lesson(1)))
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


@pytest.mark.parametrize(("part", "of_commits"), [("api", False), ("worker a", True), ("worker a", False)])
def test_f10_the_answer_to_a_statement_is_lost(
    plane: Plane, rng: random.Random, count: Callable[[int, int], int], part: str, of_commits: bool
) -> None:
    """Each time another one, of all that a short job asks of the database from its submission to its end."""
    way = plane.ways[part]
    numbers = rng.sample(range(1, 13 if of_commits else 41), count(12 if of_commits else 40, 3))
    for number in numbers:
        before = way.num_lost
        way.lose_answer(number, of_commits=of_commits)
        job_id = plane.submit(lesson(15, save_every=5))
        job = programs.until_ended(plane, job_id)
        assert job["status"] == "succeeded"
        plane.until(lambda before=before: way.num_lost > before, f"answer {number} was lost", stated_s=60)


@pytest.mark.parametrize("wish", ["submit", "cancel", "pause"])
def test_f10_the_answer_to_the_apis_commit_is_lost(plane: Plane, gate: Path, wish: str) -> None:
    """The client hears 503, or nothing, and asks again: it was done, and is done once."""
    way = plane.ways["api"]
    job_id = plane.submit(lesson(hold_at=10, gate=gate)) if wish != "submit" else ""
    before = way.num_lost
    way.lose_answer(1, of_commits=True)
    if wish == "submit":
        spec = plane.spec(lesson(5))
        job_id = plane.client.submit(spec, key="once")
        listed = plane.client.get("/jobs?limit=1000")["data"]
        assert [job["id"] for job in listed if job["train"]["train_file"] == spec["train"]["train_file"]] == [job_id]
    else:
        assert plane.client.ask(job_id, wish)
        assert plane.client.kinds(job_id).count(f"{wish}_requested") == 1
    assert way.num_lost == before + 1


def test_f11_a_host_that_is_cut_off_from_the_database(plane: Plane, gate: Path) -> None:
    """It ends its ranks before its lease is over; b takes the job over, and nothing that a writes later counts."""
    job_id = plane.submit(lesson(hold_at=30, gate=gate, before=({"do": "ignore_stop"},)))
    programs.until_saved(plane, job_id)
    assert plane.client.job(job_id)["attempt"]["host"] == "a"
    supervisor, (rank,) = injections.supervisor_of(plane, job_id), injections.ranks_of(plane, job_id).values()
    with plane.ways["worker a"].cut():
        began = boottime()
        plane.until(lambda: not is_running(rank), "its rank is gone", stated_s=0)
        gone_after_s = boottime() - began
        closed = programs.until_closed(plane, job_id, stated_s=200)
        gate.touch()
        job = programs.until_ended(plane, job_id)
        assert (job["status"], job["attempt"]["host"]) == ("succeeded", "b")
        assert is_running(supervisor), "it waits to tell"
    assert (closed["status"], closed["exit_reason"]) == ("lost", "lease_expired")
    assert gone_after_s >= 35 / 60 * plane.settings.lease_s - plane.settings.heartbeat_s
    plane.until(lambda: not is_running(supervisor), "the late supervisor has left", stated_s=30)
    assert plane.client.attempts(job_id)[0] == closed


def test_f12_a_host_that_stood_still_past_its_lease_writes_nothing_more(plane: Plane, gate: Path) -> None:
    """All of host a stops; b takes the job over and finishes it; a goes on, and finds itself too late."""
    job_id = plane.submit(lesson(hold_at=30, gate=gate))
    programs.until_saved(plane, job_id)
    assert plane.client.job(job_id)["attempt"]["host"] == "a"
    supervisor, (rank,) = injections.supervisor_of(plane, job_id), injections.ranks_of(plane, job_id).values()
    with injections.frozen(plane.worker("a").pid, supervisor):
        # A frozen rank would keep its locks, and be a second holder to the kernel of this one machine.
        os.kill(rank, signal.SIGKILL)
        # Stopped in the middle of a transaction, they keep the job locked until the server ends their sessions.
        plane.until(lambda: not _is_open(plane, job_id), "the attempt is closed", stated_s=600)
        gate.touch()
        assert programs.until_ended(plane, job_id)["attempt"]["host"] == "b"
        before = _rows(plane, job_id)
        with open(plane.run_dir(job_id) / "r0.log", "ab") as file:
            file.write(b"too late\n")
    plane.until(lambda: not is_running(supervisor), "the late supervisor has left", stated_s=30)
    assert _rows(plane, job_id) == before
    assert "too late" not in plane.client.log(job_id, attempt=1)


def _rows(plane: Plane, job_id: str) -> tuple[object, ...]:
    """All that the first attempt has left."""
    with plane.database.read() as session:
        attempt = session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == 1)).one()
        chunks = session.scalars(select(LogChunk.offset).where(LogChunk.attempt_id == attempt.id)).all()
    return attempt.beat, attempt.status, attempt.message, attempt.metrics_offset, *chunks


def _is_open(plane: Plane, job_id: str) -> bool:
    return plane.client.attempts(job_id)[0]["exit_reason"] is None
