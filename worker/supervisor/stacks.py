"""Owns the stack dumps of ranks that hang: asks each for its own, takes the kernel's word for one that is mute, names the silent one."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from linux import proc
from worker.ingest import tail
from worker.supervisor.ranks import Rank
from worker.supervisor.watchdog import Standstill

SIGNAL: Final = signal.SIGUSR1
"""The trainer lets faulthandler answer it with every thread's stack in r<rank>.stack; it needs no interpreter that still runs."""
PATIENCE_S: Final = 5.0
LOOK_S: Final = 0.05
MAX_READ_BYTES: Final = 1 << 20
WAITING: Final = ("distributed_c10d.py", "in _engine_run_backward", "in all_reduce", "in barrier", "in synchronize")
"""Where a rank stands that waits for its peers, in the words of faulthandler."""


class StackDump:
    """One request to every running rank. `is_over` is asked from time to time, so that the caller waits for nothing else meanwhile."""

    def __init__(self, run_dir: Path, ranks: Sequence[Rank], *, now: float) -> None:
        self._run_dir, self._began = run_dir, now
        self._ranks = [rank for rank in ranks if rank.exit_code is None]
        self._before = {rank.number: tail.size(path_of(run_dir, rank.number)) for rank in self._ranks}
        self._sizes: dict[int, int] = {}
        # Where nobody listens the signal would end the rank, and say nothing.
        asked = [rank.pid for rank in self._ranks if proc.catches(rank.pid, SIGNAL)]
        proc.send(asked, SIGNAL)

    def is_over(self, now: float) -> bool:
        """Whether every stack is whole (two looks find it alike), or nobody waits for the rest any more."""
        sizes = {number: tail.size(path_of(self._run_dir, number)) for number in self._before}
        is_whole = sizes == self._sizes and all(sizes[number] > before for number, before in self._before.items())
        self._sizes = sizes
        if not is_whole and now - self._began < PATIENCE_S:
            return False
        for rank in self._ranks:
            if not self._has_answered(rank.number):
                _write_what_the_kernel_knows(self._run_dir, rank)
        return True

    def silent_rank(self, standing: Sequence[Standstill]) -> Standstill:
        """Of the ranks that stand still, the one the others wait for: the furthest behind.

        Of those at the same step: one that does not even answer, then one that does not itself wait for its peers, then the one that
        moved the longest ago.
        """
        return min(
            standing, key=lambda one: (-1 if one.step is None else one.step, self._patience(one.rank), one.clock)
        )

    def _has_answered(self, number: int) -> bool:
        return self._sizes.get(number, 0) > self._before.get(number, 0)

    def _patience(self, number: int) -> int:
        if not self._has_answered(number):
            return 0
        path = path_of(self._run_dir, number)
        with path.open("rb") as file:
            file.seek(self._before[number])
            text = file.read(MAX_READ_BYTES).decode("utf-8", "replace")
        return 2 if any(words in text for words in WAITING) else 1


def path_of(run_dir: Path, number: int) -> Path:
    return run_dir / f"r{number}.stack"


def _write_what_the_kernel_knows(run_dir: Path, rank: Rank) -> None:
    with path_of(run_dir, rank.number).open("a", encoding="utf-8") as file:
        file.write(f"rank {rank.number} (pid {rank.pid}) gave no stack; the kernel says: {proc.standing(rank.pid)}\n")
