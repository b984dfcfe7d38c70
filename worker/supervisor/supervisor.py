"""Owns one attempt whose ranks run, to its close: their stop, the lease. A process of its own, forked by the launcher.

The main thread keeps the processes and the deadlines and never touches the database, so that nothing it waits for can keep it from
ending the ranks before the lease does. The rows are the scribe's, in threads of its own.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

from linux import proc
from linux.inotify import Watch
from linux.wakeup import Wake
from store.models import Job
from store.pubsub import Notifier
from store.settings import Settings
from store.states import ExitReason, Intent
from worker.devices import plog
from worker.ingest.thread import Scribe
from worker.ingest.writer import Ledger
from worker.supervisor import exit_reason, fence, ranks, stacks
from worker.supervisor.exit_reason import StopAsked, Verdict
from worker.supervisor.ranks import Ranks
from worker.supervisor.stacks import StackDump
from worker.supervisor.watchdog import HangWatch, Standstill

log = logging.getLogger(__name__)


class Supervisor:
    """One attempt whose ranks run: watches them, and stops them when somebody wants that or the lease is about to end."""

    def __init__(
        self,
        settings: Settings,
        job: Job,
        run_dir: Path,
        started: Ranks,
        watch: Watch,
        ledger: Ledger,
        notifier: Notifier,
    ) -> None:
        self._settings, self._job, self._run_dir = settings, job, run_dir
        self._ranks, self._ledger = started, ledger
        self._started_at = proc.boottime()
        self._stop: StopAsked | None = None
        self._num_signals = 0
        self._hang_watch = HangWatch(
            settings, run_dir, num_ranks=len(started.members), first_step=job.step or 0, now=time.monotonic()
        )
        self._look_at = self._started_at + self._hang_watch.pause_s
        self._standing: list[Standstill] = []
        self._dump: StackDump | None = None
        self._hung: Verdict | None = None
        self._wake = Wake()
        self._scribe = Scribe(settings, job.id, ledger=ledger, watch=watch, notifier=notifier, tell=self._wake.wake)

    def run(self) -> bool:
        """Until the attempt is closed: True; or until its lease is lost and its ranks are gone: False."""
        self._take_signals()
        self._scribe.start()
        is_clean = self._keep_ranks()
        verdict = self._judge()
        self._ranks.leave()
        self._scribe.finish(verdict, is_clean=is_clean)
        if verdict.reason is ExitReason.COMPLETED:
            plog.discard(self._run_dir)
        return not self._scribe.is_lost

    def _take_signals(self) -> None:
        """SIGTERM asks for a checkpoint and an end, as a host does that shuts down; the second, or SIGINT, does not wait for it."""
        signal.set_wakeup_fd(self._wake.fd_for_signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._was_asked(1))
        signal.signal(signal.SIGINT, lambda _number, _frame: self._was_asked(2))

    def _was_asked(self, weight: int) -> None:
        self._num_signals += weight

    def _keep_ranks(self) -> bool:
        """Until no process is left: True; or until what is left cannot be ended: False."""
        while True:
            self._ranks.collect()
            now = proc.boottime()
            self._consider_hang(now)
            self._consider_stop(now)
            if not self._ranks.running or self._scribe.is_lost or now >= self._kill_from():
                return ranks.end_all(self._ranks, within_s=self._settings.quarantine_s)
            self._wake.wait(self._next_deadline() - now)

    def _consider_hang(self, now: float) -> None:
        """A rank that stands still: first the stack of every rank, then the name of the silent one, and only then the end."""
        if now < self._look_at or self._hung or self._stop or self._ranks.first_failure_at is not None:
            return
        if self._dump is not None:
            self._look_at = now + stacks.LOOK_S
            if self._dump.is_over(time.monotonic()):
                self._hung = self._name_silent_rank(self._dump)
            return
        self._look_at = now + self._hang_watch.pause_s
        self._standing = self._hang_watch.look([rank.number for rank in self._ranks.running], time.monotonic())
        if self._standing:
            self._dump = StackDump(self._run_dir, self._ranks.running, now=time.monotonic())
            self._look_at = now + stacks.LOOK_S

    def _name_silent_rank(self, dump: StackDump) -> Verdict:
        silent = dump.silent_rank(self._standing)
        self._scribe.note(
            "hung",
            attempt=self._job.num_attempts,
            rank=silent.rank,
            step=silent.step,
            phase=silent.phase,
            silence_s=round(silent.silence_s, 1),
            stacks=[f"{self._run_dir.name}/{stacks.path_of(self._run_dir, one.rank).name}" for one in self._standing],
        )
        where = "before it told of any progress" if silent.step is None else f"at step {silent.step} ({silent.phase})"
        words = f"rank {silent.rank} has stood still for {silent.silence_s:.0f} s {where}; every rank's stack was kept"
        return Verdict(ExitReason.HUNG, words, failing_rank=silent.rank)

    def _consider_stop(self, now: float) -> None:
        wish = self._wish(now)
        if wish is not None and (self._stop is None or self._stop.verdict.reason is not wish.verdict.reason):
            log.info("stopping: %s", wish.verdict.message)
            # The grace counts from the first asking: another reason does not prolong it.
            self._stop = wish if self._stop is None else replace(wish, at=self._stop.at)
        if self._stop is not None or self._ranks.first_failure_at is not None:
            self._ranks.ask_to_stop()

    def _wish(self, now: float) -> StopAsked | None:
        """Why the ranks should stop, the strongest reason first."""
        intent = self._ledger.intent
        if intent in (Intent.CANCEL, Intent.PAUSE):
            return StopAsked(exit_reason.BY_INTENT[intent], now)
        if now >= self._limit_at():
            words = f"it ran for its time limit of {self._job.time_limit_s:g} s"
            return StopAsked(Verdict(ExitReason.TIME_LIMIT, words), now)
        if intent is Intent.PREEMPT or self._num_signals:
            return StopAsked(exit_reason.BY_INTENT[Intent.PREEMPT], now)
        if now >= fence.stops_at(self._settings, self._ledger.renewed_at):
            silence_s = now - self._ledger.renewed_at
            words = f"its supervisor could not reach the database for {silence_s:.0f} s"
            return StopAsked(Verdict(ExitReason.LEASE_EXPIRED, words), now)
        return None if self._hung is None else StopAsked(self._hung, now)

    def _kill_from(self) -> float:
        """The boot time from which there is no more asking."""
        limits = [fence.kills_at(self._settings, self._ledger.renewed_at)]
        if self._stop is not None:
            limits.append(self._stop.at + self._settings.stop_grace_s)
        if (first_failure_at := self._ranks.first_failure_at) is not None:
            limits.append(first_failure_at + self._settings.sibling_grace_s)
        if self._num_signals > 1:
            limits.append(0.0)
        return min(limits)

    def _next_deadline(self) -> float:
        deadlines = [self._kill_from()]
        if self._stop is None and self._ranks.first_failure_at is None:
            deadlines += [fence.stops_at(self._settings, self._ledger.renewed_at), self._look_at, self._limit_at()]
        return min(deadlines)

    def _limit_at(self) -> float:
        """The boot time at which the job will have run for its time limit, its earlier attempts counted."""
        limit_s = self._job.time_limit_s
        return math.inf if limit_s is None else self._started_at + limit_s - self._job.ran_s

    def _judge(self) -> Verdict:
        if self._ranks.running:
            numbers = ", ".join(str(rank.number) for rank in self._ranks.running)
            words = f"rank {numbers} cannot be killed; the devices are out of use until it is gone, which a reboot of the host brings about"
            return Verdict(ExitReason.INFRA, words)
        return exit_reason.judge(self._ranks, self._run_dir, stop=self._stop)
