"""Ranks that stand still: told from slow ones by their own pace, named, and their stacks kept."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from linux import proc
from store.settings import Settings
from store.states import ExitReason, JobStatus
from tests.worker.processes import is_running
from worker.supervisor.ranks import Rank
from worker.supervisor.stacks import StackDump
from worker.supervisor.watchdog import HangWatch, Standstill

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


class Watched:
    """A run directory in the test's hand, and a watch whose clock is too."""

    def __init__(self, run_dir: Path, num_ranks: int = 2, *, first_step: int = 0) -> None:
        self.run_dir, self.ranks, self.now = run_dir, list(range(num_ranks)), 1000.0
        settings = Settings(data_dir=run_dir, hang_s=60, startup_limit_s=600, evaluate_limit_s=300, save_limit_s=200)
        self.watch = HangWatch(settings, run_dir, num_ranks=num_ranks, first_step=first_step, now=self.now)

    def write(self, rank: int, step: int, phase: str = "train") -> None:
        progress = {"step": step, "phase": phase, "monotonic": self.now}
        (self.run_dir / f"r{rank}.progress").write_text(json.dumps(progress))

    def train(self, steps: range, step_s: float) -> None:
        """All ranks step together."""
        for step in steps:
            for rank in self.ranks:
                self.write(rank, step)
            assert self.wait(step_s) == []

    def wait(self, seconds: float) -> list[Standstill]:
        """Look every few seconds for so long; the first verdict ends it."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 5.0)
            if found := self.watch.look(self.ranks, self.now):
                return found
        return []


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_fast_rank_hangs_after_the_least_time(watched: Watched) -> None:
    watched.train(range(20), 1.0)
    assert watched.wait(55) == []
    found = watched.wait(10)
    assert [one.rank for one in found] == [0, 1]
    assert 60 < found[0].silence_s < 70


def test_slow_steps_have_ten_of_their_kind(watched: Watched) -> None:
    watched.train(range(10), 30.0)
    assert watched.wait(265) == []
    assert watched.wait(40) != []


def test_one_slow_step_does_not_change_the_measure(watched: Watched) -> None:
    watched.train(range(10), 1.0)
    watched.train(range(10, 11), 50.0)
    watched.train(range(11, 20), 1.0)
    assert watched.wait(62) != []


def test_one_rank_alone_may_hang(watched: Watched) -> None:
    watched.train(range(10), 2.0)
    found: list[Standstill] = []
    for step in range(10, 100):
        watched.write(0, step)
        found = found or watched.wait(2.0)
    assert max(found, key=lambda one: one.silence_s).rank == 1


def test_before_the_first_steps_the_start_has_its_own_limit(watched: Watched) -> None:
    assert watched.wait(590) == []
    for rank in (0, 1):
        watched.write(rank, 0, "load")
    assert watched.wait(590) == []
    for rank in (0, 1):
        watched.write(rank, 0)
    assert watched.wait(590) == []
    (first, second) = watched.wait(20)
    assert (first.step, first.phase, second.step) == (0, "train", 0)


@pytest.mark.parametrize(("first_step", "is_sure"), [(0, True), (100, True), (101, False)])
def test_steps_that_went_by_between_two_looks(tmp_path: Path, first_step: int, is_sure: bool) -> None:
    """Whether a rank has begun to step is told by the checkpoint it began from; how fast, by the time since the launch at worst."""
    watched = Watched(tmp_path, first_step=first_step)
    for rank in watched.ranks:
        watched.write(rank, 102)
    assert watched.wait(60) == []
    assert bool(watched.wait(10)) is is_sure


def test_a_rank_that_never_says_anything(watched: Watched) -> None:
    found = watched.wait(700)
    assert (found[0].step, found[0].phase) == (None, "start")


def test_who_saves_or_evaluates_keeps_the_others_waiting(watched: Watched) -> None:
    watched.train(range(10), 1.0)
    watched.write(0, 9, "save")
    assert watched.wait(195) == []
    watched.write(0, 9, "train")
    # Rank 1 has waited for all of that: its own time begins only now.
    assert watched.wait(55) == []
    watched.write(0, 9, "evaluate")
    assert watched.wait(295) == []
    assert watched.wait(20) != []


def test_a_word_of_life_counts_in_an_evaluation_and_not_in_training(watched: Watched) -> None:
    watched.train(range(10), 1.0)
    for _ in range(10):
        for rank in watched.ranks:
            watched.write(rank, 9, "evaluate")
        assert watched.wait(200) == []
    for rank in watched.ranks:
        watched.write(rank, 10)
    assert watched.wait(40) == []
    for rank in watched.ranks:
        watched.write(rank, 10)
    assert watched.wait(40) != []


def test_a_watcher_that_was_stopped_begins_again(watched: Watched) -> None:
    watched.train(range(10), 1.0)
    watched.now += 10_000
    assert watched.wait(55) == []
    assert watched.wait(20) != []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "9"}', '{"step": 3, "monotonic": NaN}'])
def test_a_progress_file_that_says_nothing(watched: Watched, text: str) -> None:
    (watched.run_dir / "r0.progress").write_text(text)
    assert watched.wait(500) == []
    assert watched.wait(200)[0].step is None


def _standing(rank: int, step: int | None, clock: float) -> Standstill:
    return Standstill(rank, step, "train", 60.0, clock)


@pytest.mark.parametrize(
    ("standing", "stacks", "silent"),
    [
        ([(0, 7, 1.0), (1, 6, 2.0)], ["", ""], 1),
        ([(0, 7, 1.0), (1, None, 0.0)], ["", ""], 1),
        ([(0, 7, 2.0), (1, 7, 1.0)], ["in step", "in step"], 1),
        ([(0, 7, 1.0), (1, 7, 2.0)], ['File "x/distributed_c10d.py", line 9 in all_reduce', "in load"], 1),
        ([(0, 7, 1.0), (1, 7, 2.0)], ["in all_reduce", None], 1),
        ([(0, 7, 1.0), (1, 7, 2.0)], ["in all_reduce", "in all_reduce"], 0),
    ],
)
def test_which_rank_the_others_wait_for(
    tmp_path: Path, standing: list[tuple[int, int | None, float]], stacks: list[str | None], silent: int
) -> None:
    gone = [Rank(number, pid=2**22 + number) for number in range(len(stacks))]
    dump = StackDump(tmp_path, gone, now=0.0)
    for number, text in enumerate(stacks):
        if text is not None:
            (tmp_path / f"r{number}.stack").write_text(text + "\n")
    dump.is_over(0.1)
    assert dump.is_over(9.0)
    assert dump.silent_rank([_standing(*one) for one in standing]).rank == silent


HANG: dict[str, str] = {"LONGYARD_HANG_S": "3", "LONGYARD_STARTUP_LIMIT_S": "60"}


def _program(*rest: dict[str, Any]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for step in range(1, 6):
        steps += [{"do": "work", "first": step, "last": step, "step_s": 0.02}, {"do": "all_reduce"}]
    return [*steps, *rest]


def test_the_silent_rank_is_named_and_every_stack_is_kept(plane: Plane) -> None:
    plane.start(**HANG)
    job_id = plane.submit(_program({"do": "hang", "rank": 1}, {"do": "all_reduce"}), num_devices=2)
    plane.eventually(lambda: "attempt_closed" in plane.kinds(job_id))
    job, attempt = plane.job(job_id), plane.attempt(job_id)
    assert (attempt.exit_reason, attempt.failing_rank) == (ExitReason.HUNG, 1)
    assert "rank 1 has stood still for" in (attempt.message or "")
    assert "at step 5 (train)" in (attempt.message or "")
    assert (job.status, job.strikes) == (JobStatus.QUEUED, 1)
    (told,) = [event.data for event in plane.events(job_id) if event.kind == "hung"]
    assert (told["attempt"], told["rank"], told["step"], told["phase"]) == (1, 1, 5, "train")
    assert told["silence_s"] >= 3
    assert told["stacks"] == ["a1/r0.stack", "a1/r1.stack"]
    assert "in all_reduce" in (plane.run_dir(job_id) / "r0.stack").read_text()
    assert "in hang" in (plane.run_dir(job_id) / "r1.stack").read_text()
    plane.assert_clean(job_id)


def test_a_rank_that_the_kernel_holds_is_named_too(plane: Plane) -> None:
    """Stopped, it cannot answer the signal: the kernel answers for it."""
    plane.start(**HANG)
    job_id = plane.submit(_program({"do": "say", "text": "up"}, {"do": "wait_for_stop"}), num_devices=2)
    plane.until_log(job_id, b"up", rank=1)
    by_rank = {int(proc.variable_of(pid, "RANK") or -1): pid for pid in plane.ranks(job_id)}
    proc.send([by_rank[1]], signal.SIGSTOP)
    plane.eventually(lambda: "attempt_closed" in plane.kinds(job_id))
    attempt = plane.attempt(job_id)
    assert (attempt.exit_reason, attempt.failing_rank) == (ExitReason.HUNG, 1)
    assert "T (stopped)" in (plane.run_dir(job_id) / "r1.stack").read_text()
    assert not any(is_running(pid) for pid in by_rank.values())


def test_a_slow_rank_is_left_alone(plane: Plane) -> None:
    plane.start(**HANG)
    job_id = plane.submit(
        [
            {"do": "work", "first": 1, "last": 3, "step_s": 0.9},
            {"do": "phase", "name": "save"},
            {"do": "work", "first": 4, "last": 4, "step_s": 4.5},
            {"do": "succeed"},
        ]
    )
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert "hung" not in plane.kinds(job_id)


def test_a_trainer_that_does_not_listen_is_not_ended_by_the_question(plane: Plane, tmp_path: Path) -> None:
    """SIGUSR1 ends a process that has no handler: it is asked only where it has one."""
    plane.start(**HANG)
    job_id = plane.submit(_program({"do": "close_ears"}, {"do": "hang"}))
    plane.eventually(lambda: "attempt_closed" in plane.kinds(job_id))
    assert plane.attempt(job_id).exit_reason is ExitReason.HUNG
    assert "gave no stack" in (plane.run_dir(job_id) / "r0.stack").read_text()
