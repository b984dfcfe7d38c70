"""Verdicts from what was seen, without a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from linux.cgroup import Cgroup
from linux.oom import OomWatch
from store.states import ExitReason, Intent
from worker.devices.ascend import Action
from worker.supervisor import exit_reason
from worker.supervisor.exit_reason import StopAsked, Verdict
from worker.supervisor.ranks import Rank, Ranks


def ranks(*ends: tuple[int, float], told_at: float | None = None) -> Ranks:
    members = [Rank(number, 100 + number, code, at, told_at) for number, (code, at) in enumerate(ends)]
    return Ranks(members, any_left=False)


def log(run_dir: Path, rank: int, text: str) -> None:
    (run_dir / f"r{rank}.log").write_text(text)


def results(run_dir: Path, text: str = '{"perplexity": 2.0}') -> None:
    (run_dir / "output").mkdir()
    (run_dir / "output" / "results.json").write_text(text)


def test_all_ended_well(tmp_path: Path) -> None:
    results(tmp_path)
    stop = StopAsked(exit_reason.BY_INTENT[Intent.CANCEL], 0.0)
    verdict = exit_reason.judge(ranks((0, 1.0), (0, 2.0)), tmp_path, stop=stop)
    assert verdict == Verdict(ExitReason.COMPLETED, None, None, {"perplexity": 2.0, "output": str(tmp_path / "output")})


@pytest.mark.parametrize("text", ["", "[]", "{", "x" * 2_000_000])
def test_results_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    results(tmp_path, text)
    verdict = exit_reason.judge(ranks((0, 1.0)), tmp_path, stop=None)
    assert verdict.reason is ExitReason.INFRA
    assert "results.json" in (verdict.message or "")


def test_a_failure_before_the_stop_is_the_cause(tmp_path: Path) -> None:
    log(tmp_path, 1, "Traceback\nValueError: odd\n\n")
    stop = StopAsked(exit_reason.BY_INTENT[Intent.CANCEL], 5.0)
    verdict = exit_reason.judge(ranks((-15, 6.0), (1, 4.0), told_at=4.5), tmp_path, stop=stop)
    assert verdict == Verdict(ExitReason.USER_ERROR, "rank 1 failed: ValueError: odd", 1)
    verdict = exit_reason.judge(ranks((3, 6.0), (1, 7.0)), tmp_path, stop=stop)
    assert verdict == Verdict(ExitReason.USER_CANCELLED, "cancelled")


@pytest.mark.parametrize(
    ("ends", "failing", "reason"),
    [
        ([(7, 1.0), (5, 5.0)], 1, ExitReason.OUT_OF_MEMORY),
        ([(1, 1.0), (-11, 3.0)], 1, ExitReason.INFRA),
        ([(7, 1.0), (5, 6.5)], 0, ExitReason.INFRA),
        ([(7, 2.0), (7, 1.0)], 1, ExitReason.INFRA),
        ([(4, 2.0), (0, 1.0)], 0, ExitReason.DIVERGED),
        ([(3, 1.0), (6, 2.0)], 1, ExitReason.STORAGE),
        ([(127, 1.0), (0, 2.0)], 0, ExitReason.LAUNCH_ERROR),
    ],
)
def test_which_rank_and_why(tmp_path: Path, ends: list[tuple[int, float]], failing: int, reason: ExitReason) -> None:
    verdict = exit_reason.judge(ranks(*ends), tmp_path, stop=None)
    assert (verdict.failing_rank, verdict.reason) == (failing, reason)


def test_siblings_that_we_ended_are_no_cause(tmp_path: Path) -> None:
    attempt = ranks((-9, 1.5), (1, 1.0))
    attempt.members[0].told_at = 1.1
    assert exit_reason.judge(attempt, tmp_path, stop=None).failing_rank == 1


def test_told_from_outside_to_stop(tmp_path: Path) -> None:
    verdict = exit_reason.judge(ranks((3, 1.0)), tmp_path, stop=None)
    assert (verdict.reason, verdict.message) == (ExitReason.INFRA, "rank 0 stopped: somebody outside told it to stop")


LOADER = "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. "


@pytest.mark.parametrize(
    ("code", "text", "kills", "reason", "words"),
    [
        (
            -9,
            "",
            1,
            ExitReason.OUT_OF_MEMORY,
            "rank 0 was killed by SIGKILL: the kernel ended it because memory ran out",
        ),
        (-9, "", 0, ExitReason.INFRA, "rank 0 was killed by SIGKILL"),
        (-11, "", 1, ExitReason.INFRA, "rank 0 was killed by SIGSEGV"),
        (1, LOADER, 1, ExitReason.OUT_OF_MEMORY, "rank 0 failed: its loader worker was killed: the kernel ended it"),
        (1, LOADER, 0, ExitReason.INFRA, "rank 0 failed: its loader worker was killed (Killed)"),
        (
            1,
            LOADER.replace("Killed", "Bus error"),
            1,
            ExitReason.INFRA,
            "rank 0 failed: its loader worker was killed (Bus",
        ),
    ],
)
def test_who_was_killed_and_whether_memory_ran_out(
    tmp_path: Path, code: int, text: str, kills: int, reason: ExitReason, words: str
) -> None:
    (tmp_path / "memory.events").write_text(f"low 0\nhigh 0\nmax 7\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")
    log(tmp_path, 0, text)
    attempt = ranks((code, 1.0))
    attempt.oom = OomWatch(Cgroup(tmp_path))
    verdict = exit_reason.judge(attempt, tmp_path, stop=None)
    assert verdict.reason is reason
    assert (verdict.message or "").startswith(words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", ExitReason.OUT_OF_MEMORY),
        ("RuntimeError: CUDA error: device-side assert triggered", ExitReason.DEVICE_ERROR),
        ("OSError: [Errno 28] No space left on device", ExitReason.STORAGE),
        ("KeyError: 'loss'", ExitReason.USER_ERROR),
    ],
)
def test_signatures_in_the_last_line(tmp_path: Path, text: str, reason: ExitReason) -> None:
    log(tmp_path, 0, f"Traceback (most recent call last):\n  …\n{text}\n")
    assert exit_reason.judge(ranks((1, 1.0)), tmp_path, stop=None) == Verdict(reason, f"rank 0 failed: {text}", 0)


@pytest.mark.parametrize(
    ("code", "text", "reason", "action", "words"),
    [
        (
            1,
            "RuntimeError: NPU out of memory. Tried to allocate 2 GiB",
            ExitReason.OUT_OF_MEMORY,
            Action.NONE,
            "memory is full",
        ),
        (1, "RuntimeError: EZ9999: Inner Error!", ExitReason.DEVICE_ERROR, Action.NONE, "an operator failed"),
        (7, "RuntimeError: EI0002: notify wait", ExitReason.INFRA, Action.NONE, "another rank failed first"),
        (1, "RuntimeError: error 0x80E01801", ExitReason.DEVICE_ERROR, Action.CORDON, "cannot be corrected"),
        (2, "BadInput: 0x80E01801 is no field", ExitReason.USER_ERROR, Action.NONE, "BadInput"),
    ],
)
def test_the_codes_of_ascend_in_the_last_line(
    tmp_path: Path, code: int, text: str, reason: ExitReason, action: Action, words: str
) -> None:
    log(tmp_path, 0, f"Traceback (most recent call last):\n  …\n{text}\n")
    verdict = exit_reason.judge(ranks((code, 1.0)), tmp_path, stop=None)
    assert (verdict.reason, verdict.action, verdict.failing_rank) == (reason, action, 0)
    assert words in (verdict.message or "")
    assert text in (verdict.message or "")


def plog_of(run_dir: Path, pid: int, text: str) -> None:
    directory = run_dir / "plog" / "debug" / "plog"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"plog-{pid}_20260101000000.log").write_text(text)


@pytest.mark.parametrize("code", [1, 7, -6])
def test_what_the_runtime_logged_of_a_rank_says_more_than_its_end(tmp_path: Path, code: int) -> None:
    log(tmp_path, 0, "RuntimeError: synchronize failed\n")
    plog_of(tmp_path, 100, "[INFO] 0x80E01801 is a code\n[ERROR] RUNTIME: hardware event 0x80FA4E00\n")
    verdict = exit_reason.judge(ranks((code, 1.0)), tmp_path, stop=None)
    assert (verdict.reason, verdict.action) == (ExitReason.DEVICE_ERROR, Action.CORDON)
    assert (verdict.message or "").startswith("rank 0 failed: the card's heartbeat was lost (")


def test_the_card_that_broke_is_named_and_not_the_rank_that_waited_for_it(tmp_path: Path) -> None:
    log(tmp_path, 0, "RuntimeError: EI0002: notify wait timeout\n")
    log(tmp_path, 1, "RuntimeError: synchronize failed\n")
    plog_of(tmp_path, 100, "[ERROR] HCCL: EI0002\n")
    plog_of(tmp_path, 101, "[ERROR] RUNTIME: 0x80C9800A\n")
    verdict = exit_reason.judge(ranks((1, 1.0), (1, 2.0)), tmp_path, stop=None)
    assert (verdict.failing_rank, verdict.reason, verdict.action) == (1, ExitReason.DEVICE_ERROR, Action.RESET)


def test_other_hosts_logs_are_not_searched_for_codes(tmp_path: Path) -> None:
    log(tmp_path, 0, "0x80E01801\nValueError: odd\n")
    verdict = exit_reason.judge(ranks((1, 1.0)), tmp_path, stop=None)
    assert verdict == Verdict(ExitReason.USER_ERROR, "rank 0 failed: ValueError: odd", 0)


def test_files_nested_deeper_than_can_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "r0.error.json").write_text("[" * 5000)
    verdict = exit_reason.judge(ranks((1, 1.0)), tmp_path, stop=None)
    assert (verdict.reason, verdict.failing_rank) == (ExitReason.USER_ERROR, 0)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_results_nested_deeper_than_can_be_read_are_none(tmp_path: Path, depth: int) -> None:
    results(tmp_path, '{"a":' * depth + "1" + "}" * depth)
    verdict = exit_reason.from_files(tmp_path, num_ranks=1, otherwise=Verdict(ExitReason.COMPLETED, None))
    assert verdict.reason is ExitReason.INFRA
    assert "results.json cannot be read" in (verdict.message or "")


def test_a_real_time_signal_has_a_number(tmp_path: Path) -> None:
    verdict = exit_reason.judge(ranks((-40, 1.0)), tmp_path, stop=None)
    assert (verdict.reason, verdict.message) == (ExitReason.INFRA, "rank 0 was killed by signal 40")


def test_messages_are_bounded_and_printable(tmp_path: Path) -> None:
    log(tmp_path, 0, "Error: \x1b[31mred\x00 " + "y" * 5000)
    message = exit_reason.judge(ranks((1, 1.0)), tmp_path, stop=None).message or ""
    assert len(message) == exit_reason.MAX_MESSAGE_CHARS
    assert message.isprintable()


def test_without_exit_codes_the_files_tell(tmp_path: Path) -> None:
    gone = Verdict(ExitReason.INFRA, "its supervisor is gone")
    assert exit_reason.from_files(tmp_path, num_ranks=2, otherwise=gone) == gone
    for rank, kind, clock in ((0, "lost_peer", 1.0), (1, "out_of_memory", 2.0)):
        error = {"kind": kind, "type": "RuntimeError", "message": f"of rank {rank}", "monotonic": clock}
        (tmp_path / f"r{rank}.error.json").write_text(json.dumps(error))
    verdict = exit_reason.from_files(tmp_path, num_ranks=2, otherwise=gone)
    assert verdict == Verdict(ExitReason.OUT_OF_MEMORY, "rank 1 failed: RuntimeError: of rank 1", 1)
    results(tmp_path)
    assert exit_reason.from_files(tmp_path, num_ranks=2, otherwise=gone).reason is ExitReason.COMPLETED
