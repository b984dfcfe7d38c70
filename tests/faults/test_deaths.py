"""Kills: the worker, the supervisor, ranks, a whole host and a spoilt checkpoint (F1–F4, F18, F22–F24, F26)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults import injections, programs
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.worker.processes import is_running


def test_f1_a_killed_worker_costs_training_nothing(plane: Plane, gate: Path) -> None:
    job_id = plane.submit(lesson(hold_at=25, gate=gate), num_devices=2)
    programs.until_step(plane, job_id, 25)
    injections.kill_worker(plane)
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)
    assert not plane.worker().is_up


def test_f1_a_killed_launcher_is_replaced(plane: Plane, gate: Path) -> None:
    job_id = plane.submit(lesson(hold_at=5, gate=gate))
    programs.until_step(plane, job_id, 5)
    injections.kill_launcher(plane)
    assert programs.until_ended(plane, plane.submit(lesson(10)))["status"] == "succeeded"
    gate.touch()
    assert programs.until_ended(plane, job_id)["attempt"]["number"] == 1


def test_f2_a_killed_supervisor(plane: Plane, gate: Path) -> None:
    """Its ranks save and leave by themselves; the host closes the attempt and the job goes on from there."""
    before = ({"do": "fork_loader"},)
    job_id = plane.submit(lesson(hold_at=30, gate=gate, save_every=1000, before=before), num_devices=2)
    programs.until_step(plane, job_id, 30)
    injections.kill_supervisor(plane, job_id)
    closed = programs.until_closed(plane, job_id, stated_s=10)
    assert (closed["exit_reason"], closed["message"]) == ("infra", "its supervisor was killed by SIGKILL")
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 2)
    assert "resuming" in plane.client.kinds(job_id), (
        "the checkpoint that the ranks wrote on their way out was not taken"
    )


def test_f3_rank_zero_killed_beside_its_loaders(plane: Plane, gate: Path) -> None:
    before = ({"do": "fork_loader"}, {"do": "ignore_stop", "rank": 2})
    job_id = plane.submit(lesson(hold_at=30, gate=gate, before=before), num_devices=3)
    for rank in range(3):
        programs.until_said(plane, job_id, "step 30 ", rank=rank)
    ranks, loaders = injections.ranks_of(plane, job_id), injections.loaders_of(plane, job_id)
    assert (len(ranks), len(loaders)) == (3, 3)
    injections.kill_rank(plane, job_id, 0)
    plane.until(lambda: not any(map(is_running, [*ranks.values(), *loaders])), "all of them are gone", stated_s=10)
    closed = programs.until_closed(plane, job_id, stated_s=10)
    assert (closed["exit_reason"], closed["failing_rank"]) == ("infra", 0)
    assert "rank 0 was killed by SIGKILL" in closed["message"]
    gate.touch()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def test_f4_one_rank_killed(plane: Plane, gate: Path) -> None:
    job_id = plane.submit(lesson(hold_at=45, gate=gate), num_devices=3)
    for rank in range(3):
        programs.until_said(plane, job_id, "step 45 ", rank=rank)
    injections.kill_rank(plane, job_id, 1)
    closed = programs.until_closed(plane, job_id, stated_s=10)
    assert (closed["exit_reason"], closed["failing_rank"]) == ("infra", 1)
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 2)
    assert "resuming" in plane.client.kinds(job_id)


@pytest.mark.parametrize(
    ("file", "how"), [("state.json", "truncate"), ("state.json", "flip"), ("manifest.json", "flip")]
)
def test_f18_a_spoilt_checkpoint_is_passed_over(
    plane: Plane, gate: Path, rng: random.Random, file: str, how: str
) -> None:
    job_id = plane.submit(lesson(hold_at=45, gate=gate))
    programs.until_saved(plane, job_id, 2)
    injections.spoil(plane.run_dir(job_id) / "checkpoints" / "step-40" / file, how, at=rng.random())
    injections.kill_rank(plane, job_id)
    gate.touch()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"
    told = [event["data"]["step"] for event in plane.client.events(job_id) if event["kind"] == "checkpoint_corrupt"]
    assert told == [40]
    assert min(plane.client.series(job_id, "loss")[2]) == 21


def test_f26_killed_for_want_of_memory(plane: Plane, gate: Path) -> None:
    """By the kernel, which counts it: not as somebody's kill -9. A second time, and the job has failed."""
    job_id = plane.submit(lesson(hold_at=10, gate=gate))
    try:
        for number in (1, 2):
            programs.until_attempt(plane, job_id, number)
            plane.until(lambda: 0 in injections.ranks_of(plane, job_id), "its rank runs", stated_s=10)
            plane.switch("oom_kills", str(1_000_000 + number))
            injections.kill_rank(plane, job_id)
            closed = programs.until_closed(plane, job_id, number, stated_s=10)
            assert (closed["exit_reason"], closed["failing_rank"]) == ("out_of_memory", 0)
            assert "memory ran out" in closed["message"]
    finally:
        plane.switch("oom_kills", None)
    assert programs.until_ended(plane, job_id)["status"] == "failed"


def test_f22_a_reboot_closes_what_was_open_at_once(plane: Plane, gate: Path) -> None:
    before = ({"do": "ignore_stop"},)
    jobs = [plane.submit(lesson(hold_at=30, gate=gate, before=before), num_devices=2) for _ in range(2)]
    for job_id in jobs:
        programs.until_saved(plane, job_id)
    injections.reboot(plane, "a", boot_id="another-boot")
    for job_id in jobs:
        closed = programs.until_closed(plane, job_id, stated_s=10)
        assert (closed["exit_reason"], closed["message"]) == ("infra", "host a was restarted")
    gate.touch()
    for job_id in jobs:
        assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def test_f23_what_a_dead_attempt_left_behind_never_meets_the_next(plane: Plane, gate: Path) -> None:
    """A loader in a session of its own keeps the devices' locks: the kernel would tell of two holders (K3)."""
    before = ({"do": "ignore_stop"}, {"do": "fork_loader"})
    job_id = plane.submit(lesson(hold_at=30, gate=gate, before=before), num_devices=4)
    programs.until_saved(plane, job_id)
    loaders = injections.loaders_of(plane, job_id)
    injections.kill_supervisor(plane, job_id)
    waiting = plane.submit(lesson(10), num_devices=4)
    assert programs.until_ended(plane, waiting)["status"] == "succeeded"
    assert not any(map(is_running, loaders))
    gate.touch()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def test_f24_a_killed_job_does_not_disturb_its_neighbour(plane: Plane, gate: Path) -> None:
    killed, neighbour = (plane.submit(lesson(hold_at=30, gate=gate), num_devices=2) for _ in range(2))
    for job_id in (killed, neighbour):
        programs.until_saved(plane, job_id)
    for number, death in enumerate((injections.kill_rank, injections.kill_supervisor), start=1):
        programs.until_attempt(plane, killed, number)
        plane.until(lambda: 0 in injections.ranks_of(plane, killed), "its ranks run", stated_s=10)
        death(plane, killed)
        programs.until_closed(plane, killed, number, stated_s=10)
    gate.touch()
    job = programs.until_ended(plane, neighbour)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)
    assert programs.until_ended(plane, killed)["status"] == "succeeded"
