"""Owns the judging of standstill: whether a rank has not moved for longer than its phase allows. By progress files, not by a wall clock."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from store.settings import Settings
from worker.ingest import tail
from worker.ingest.tail import Progress

STEPS: Final = 10.0
"""A rank may stand still for the time of so many of its steps, and for `hang_s` in any case."""
REMEMBERED_STEPS: Final = 64
SURE_STEPS: Final = 2
LOOKS_A_LIMIT: Final = 10
LONGEST_LOOK_S: Final = 5.0
BEGINNING: Final = "start"
"""The phase of a rank that has not written its progress file yet."""
TRAINING: Final = "train"


@dataclass(frozen=True)
class Standstill:
    """Where one rank stands, and for how long: `step` is None before it said anything; `clock` is its own word on when it last moved."""

    rank: int
    step: int | None
    phase: str
    silence_s: float
    clock: float


@dataclass
class _Sight:
    """What was last seen of a rank, and since when (the watcher's monotonic clock) it has been so."""

    since: float
    progress: Progress | None = None
    step_times: deque[float] = field(default_factory=lambda: deque[float](maxlen=REMEMBERED_STEPS))

    @property
    def phase(self) -> str:
        return BEGINNING if self.progress is None else self.progress.phase or TRAINING


class HangWatch:
    """Watches the ranks of one attempt. `now` is CLOCK_MONOTONIC everywhere: a machine that was suspended has not hung.

    `first_step` is the checkpoint's that it begins from.
    """

    def __init__(self, settings: Settings, run_dir: Path, *, num_ranks: int, first_step: int, now: float) -> None:
        self._settings, self._run_dir = settings, run_dir
        self._first_step, self._began = first_step, now
        self._sights = [_Sight(now) for _ in range(num_ranks)]
        self._looked_at = now
        self.pause_s = min(LONGEST_LOOK_S, settings.hang_s / LOOKS_A_LIMIT)
        """How long to wait between two looks."""

    def look(self, running: Collection[int], now: float) -> list[Standstill]:
        """Every running rank, if one of them has stood still for longer than any of them may; else nothing.

        One that saves keeps the others waiting: the most patient phase of all counts, and counts for each.
        """
        if now - self._looked_at > self._settings.hang_s / 2 + self.pause_s:
            # The watcher itself was stopped, and the ranks maybe with it: nobody knows how long they really stood.
            self._begin_again(now)
        self._looked_at = now
        changes = [self._see(rank, now) for rank in running]
        if any(changes):
            self._begin_again(now)
        limit_s = max((self._limit_s(self._sights[rank]) for rank in running), default=0.0)
        if not any(now - self._sights[rank].since > limit_s for rank in running):
            return []
        return [self._standstill(rank, now) for rank in sorted(running)]

    def _see(self, rank: int, now: float) -> bool:
        """Read a rank's progress; answers whether it is in another phase than before."""
        sight, found = self._sights[rank], tail.read_progress(self._run_dir / f"r{rank}.progress")
        if found is None or not _has_moved(sight.progress, found):
            return False
        before, phase = sight.progress, sight.phase
        sight.progress, sight.since = found, now
        if sight.phase != phase:
            return True
        if before is not None and found.step > before.step and found.monotonic > before.monotonic:
            sight.step_times.append((found.monotonic - before.monotonic) / (found.step - before.step))
        return False

    def _begin_again(self, now: float) -> None:
        """Whoever waited for a rank that was busy with something else gets the whole time for the next step."""
        for sight in self._sights:
            sight.since = now

    def _limit_s(self, sight: _Sight) -> float:
        phase, settings, step_s = sight.phase, self._settings, self._step_s(sight)
        if phase == "evaluate":
            return settings.evaluate_limit_s
        if phase in ("save", "end"):
            return settings.save_limit_s
        if phase != TRAINING or step_s is None:
            # Compilers work in the first steps.
            return settings.startup_limit_s
        return max(settings.hang_s, STEPS * step_s)

    def _step_s(self, sight: _Sight) -> float | None:
        """The median of what was seen; of steps that went by between two looks at least how long they cannot have been."""
        if sight.step_times:
            return statistics.median(sight.step_times)
        done = 0 if sight.progress is None else sight.progress.step - self._first_step
        return (sight.since - self._began) / done if done >= SURE_STEPS else None

    def _standstill(self, rank: int, now: float) -> Standstill:
        sight = self._sights[rank]
        step, clock = (None, 0.0) if sight.progress is None else (sight.progress.step, sight.progress.monotonic)
        return Standstill(rank, step, sight.phase, now - sight.since, clock)


def _has_moved(before: Progress | None, found: Progress) -> bool:
    """In training only a step counts; elsewhere any word of life does."""
    if before is None or (found.step, found.phase) != (before.step, before.phase):
        return True
    return found.phase not in (TRAINING, None) and found.monotonic != before.monotonic
