"""What a rank tells of its start, and of itself when it hangs."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.conftest import ROOT, Ranks

Launch = Callable[..., Ranks]
Spec = Callable[..., dict[str, Any]]
# Real processes on a machine that may be busy with other things.
pytestmark = pytest.mark.timeout(900)


def test_the_parts_add_up_to_the_time_since_the_process_began() -> None:
    code = (
        "import time; began = time.perf_counter(); from trainer.startup_timer import StartUp; s = StartUp(); "
        "s.passed('a'); time.sleep(0.05); s.passed('b'); s.passed('a'); print(s.parts(), time.perf_counter() - began)"
    )
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    whole = time.clock_gettime(time.CLOCK_BOOTTIME) - before
    words, _, inside = told.rpartition(" ")
    parts: dict[str, float] = eval(words)  # noqa: S307
    assert list(parts) == ["process", "a", "b"]
    assert parts["b"] >= 0.05
    # The kernel tells a process's start in ticks of 10 ms.
    assert float(inside) - 0.02 <= sum(parts.values()) <= whole + 0.02


def test_a_run_tells_once_where_its_start_went(launch: Launch, train: Launch, spec: Spec) -> None:
    ranks = launch("run", spec(max_steps=3, save_steps=2), world_size=2).succeed()
    (line,) = ranks.lines("startup")
    assert list(line["parts"]) == ["process", "imports", "join", "data", "model", "evaluate", "first_step"]
    assert all(seconds >= 0 for seconds in line["parts"].values())
    assert line["step"] == 1
    assert "first step after" in ranks.log()

    resumed = train("resumed", spec(max_steps=3, do_eval=False, resume_from_checkpoint=_at_step_2(ranks)))
    (line,) = resumed.lines("startup")
    assert (line["step"], "evaluate" in line["parts"]) == (3, False)


def _at_step_2(ranks: Ranks) -> dict[str, str]:
    line = ranks.lines("checkpoint")[0]
    return {"dir": line["dir"], "manifest_sha256": line["manifest_sha256"]}


def test_a_hanging_rank_tells_where_it_hangs(launch: Launch, spec: Spec) -> None:
    ranks = launch("run", spec(max_steps=100_000, do_eval=False), world_size=2)
    stacks = [ranks.directory / f"r{rank}.stack" for rank in range(2)]
    ranks.until(lambda: ranks.progress()["step"] >= 2)
    assert [path.read_bytes() for path in stacks] == [b"", b""]

    ranks.processes[1].send_signal(signal.SIGSTOP)
    # What the stopped peer had sent is used up once the step stands still.
    _stands_still(ranks)
    ranks.processes[0].send_signal(signal.SIGUSR1)
    ranks.until(lambda: "__main__.py" in stacks[0].read_text())
    stuck = stacks[0].read_text()
    assert "trainer/loop.py" in stuck, "which of the loop's lines waits"
    # DDP's own collective is waited for inside the backward pass, in C++.
    assert "in all_reduce" in stuck or "in _engine_run_backward" in stuck
    assert stacks[1].read_bytes() == b"", "only who was asked writes"

    # The dump has harmed nothing: both go on and stop as ever.
    ranks.processes[1].send_signal(signal.SIGCONT)
    step = ranks.progress()["step"]
    ranks.until(lambda: ranks.progress(1)["step"] > step + 1)
    ranks.signal(signal.SIGTERM)
    assert ranks.wait() == [3, 3]


def _stands_still(ranks: Ranks, seconds: float = 1.0) -> None:
    seen, since = -1, time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        step = ranks.progress()["step"]
        if step != seen:
            seen, since = step, time.monotonic()
        return time.monotonic() - since > seconds

    ranks.until(still)


def test_the_signal_can_be_sent_as_soon_as_the_file_is_there(launch: Launch, spec: Spec) -> None:
    ranks = launch("run", spec(max_steps=1, do_eval=False))
    stack = ranks.directory / "r0.stack"
    ranks.until(stack.exists)
    # Most likely among the imports of torch, long before there is a loop.
    ranks.signal(signal.SIGUSR1)
    ranks.until(lambda: "Current thread" in stack.read_text())
    ranks.succeed()
