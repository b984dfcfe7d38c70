"""Stops: cancel at any moment and of trainers that do not listen, pause and preempt again and again, crashes without progress."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linux.proc import boottime
from store import attempts, hosts, jobs
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.checks import strays
from tests.faults.conftest import calm
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """One host; what stands still for eight seconds hangs."""
    variables = {**calm(timings), "LONGYARD_HANG_S": "8"}
    root = tmp_path_factory.mktemp("plane")
    with planes.running(root, timings, devices={"a": 4}, template=sqlite_template, variables=variables) as plane:
        yield plane


def test_f19_cancel_at_any_instant(plane: Plane, rng: random.Random, count: Callable[[int, int], int]) -> None:
    for _ in range(count(200, 10)):
        job_id = plane.submit(lesson(rng.randrange(1, 40)), num_devices=rng.choice([1, 2]))
        time.sleep(rng.uniform(0, 0.8))
        allowed = plane.client.ask(job_id, "cancel")
        job = programs.until_ended(plane, job_id, stated_s=60)
        assert job["status"] in ("cancelled", "succeeded")
        assert allowed or job["status"] == "succeeded", "only what has succeeded cannot be cancelled"


def test_f20_cancel_of_a_trainer_that_does_not_listen(plane: Plane) -> None:
    before = ({"do": "ignore_stop"}, {"do": "fork_loader"})
    job_id = plane.submit([*before, {"do": "say", "text": "up"}, {"do": "hang"}], num_devices=2)
    for rank in range(2):
        programs.until_said(plane, job_id, "up", rank=rank)
    asked_at = boottime()
    plane.client.ask(job_id, "cancel")
    job = programs.until_ended(plane, job_id, stated_s=40)
    assert (job["status"], job["attempt"]["exit_reason"]) == ("cancelled", "user_cancelled")
    assert boottime() - asked_at >= plane.settings.stop_grace_s, "it was killed before its grace was over"


@pytest.mark.parametrize("ended_by", ["its supervisor", "its host"])
def test_f21_a_rank_that_cannot_be_killed(plane: Plane, ended_by: str) -> None:
    """Its device is out of use and shown so, the job ends, and what comes next runs elsewhere."""
    job_id = plane.submit([{"do": "ignore_stop"}, {"do": "say", "text": "up"}, {"do": "hang"}])
    programs.until_said(plane, job_id, "up")
    (rank,) = injections.ranks_of(plane, job_id).values()
    (device,) = plane.client.job(job_id)["attempt"]["devices"]
    plane.switch("immortal", str(rank))
    try:
        plane.client.ask(job_id, "cancel")
        if ended_by == "its host":
            injections.kill_supervisor(plane, job_id)
        job = programs.until_ended(plane, job_id, stated_s=70)
        assert job["status"] == "cancelled"
        assert _state(plane, device) == "quarantined"
        following = plane.submit(lesson(5), num_devices=3)
        assert device not in programs.until_ended(plane, following)["attempt"]["devices"]
        assert strays(plane)
    finally:
        plane.switch("immortal", None)
        os.kill(rank, signal.SIGKILL)
    _clear(plane, job_id)


def test_f27_one_rank_stands_still(plane: Plane, gate: Path) -> None:
    """The other waits for it: the silent one is named, every rank's stack is kept, and the job goes on from its checkpoint."""
    (training, ending) = lesson()
    silent = lesson(hold_at=30, gate=gate)[0]
    program = [{**training, "rank": 0}, {**silent, "rank": 1}, {"do": "all_reduce"}, ending]
    job_id = plane.submit(program, num_devices=2)
    closed = programs.until_closed(plane, job_id, stated_s=200)
    gate.touch()
    assert (closed["exit_reason"], closed["failing_rank"]) == ("hung", 1)
    for rank in range(2):
        assert "fake_trainer.py" in (plane.run_dir(job_id) / f"r{rank}.stack").read_text()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def test_f36_pause_resume_and_preempt_again_and_again(plane: Plane, count: Callable[[int, int], int]) -> None:
    """Every stop goes on from its own checkpoint, and none counts as a try."""
    times = count(20, 6)
    job_id = plane.submit(lesson(10_000, step_s=0.005, save_every=100_000), num_devices=2)
    reached = 0
    for number in range(1, times + 1):
        programs.until_step(plane, job_id, reached + 3)
        if number % 2:
            plane.client.ask(job_id, "pause")
            plane.until(lambda: plane.client.status(job_id) == "paused", "it is paused", stated_s=60)
            plane.client.ask(job_id, "resume")
        else:
            with plane.database.write() as session:
                jobs.preempt(session, job_id, why="the test")
        programs.until_attempt(plane, job_id, number + 1)
        reached = programs.step_of(plane, job_id)
    with plane.database.read() as session:
        job = jobs.get(session, job_id)
    assert (job.strikes, job.retry_delay_s, job.num_attempts) == (0, 0.0, times + 1)
    assert {one["exit_reason"] for one in plane.client.attempts(job_id)[:-1]} == {"paused", "preempted"}


def test_f37_a_job_that_crashes_every_attempt(plane: Plane) -> None:
    """It kills its own supervisor: five tries without progress, and it has failed."""
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "kill_supervisor"}, {"do": "hang"}])
    job = programs.until_ended(plane, job_id, stated_s=600)
    assert (job["status"], job["attempt"]["number"], job["attempt"]["exit_reason"]) == ("failed", 5, "infra")


def test_f37_progress_forgives_earlier_tries(plane: Plane) -> None:
    """A checkpoint each time: more than five deaths do not end it."""
    job_id = plane.submit(lesson(33, save_every=5, die_after=5))
    job = programs.until_ended(plane, job_id, stated_s=300)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 7)


def _clear(plane: Plane, job_id: str) -> None:
    """What a person does who has looked."""
    with plane.database.write() as session:
        attempt = attempts.newest(session, job_id)
        assert attempt is not None
        hosts.free(session, attempt.id)


def _state(plane: Plane, index: int) -> str:
    return next(one["state"] for host in plane.client.hosts() for one in host["devices"] if one["index"] == index)
