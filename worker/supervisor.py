"""Owns one attempt from its launch to its close: the ranks, their stop, the lease. A process of its own, forked by the launcher.

The main thread keeps the processes and the deadlines and never touches the database, so that nothing it waits for can keep it from
ending the ranks before the lease does; a second thread keeps the rows, a third listens for wake-ups.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import redis
from sqlalchemy.exc import SQLAlchemyError

from store import attempts, jobs
from store.db import Database
from store.errors import LeaseLost, NotFound
from store.models import Attempt, Job
from store.notify import Notifier, channel_intent
from store.settings import Settings
from store.states import ExitReason, Intent
from worker import cause, preparation, processes, ranks
from worker.cause import StopAsked, Verdict
from worker.ledger import Ledger
from worker.preparation import Refused
from worker.ranks import Ranks
from worker.runlock import RunLock
from worker.wake import Wake
from worker.watch import Watch

BATCH_S: Final = 0.25
"""At most this long a line waits for its commit; after a quiet spell it waits for nothing."""
NOISE_S: Final = 0.01
"""Files grow in ways that are no news: half a line, an error file. They are looked at no more often than this."""
POLL_S: Final = 1.0
RETRY_S: Final = 0.5
LISTEN_S: Final = 60.0
PATIENCE_S: Final = 0.2
QUARANTINE_S: Final = 30.0
FENCE_TERM: Final = 35 / 60
FENCE_KILL: Final = 45 / 60
"""Shares of the lease without a renewal after which the ranks get SIGTERM and SIGKILL; all is over well before it ends."""

DONE, BUSY, LOST, FAILED = 0, 10, 11, 12
"""Exit codes: closed; another supervisor has the attempt; the lease was lost; could not even begin."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """What the host loop asks for. `cpu_threads` is a rank's share of the host's cores."""

    attempt_id: str
    job_id: str
    number: int
    cpu_threads: int
    simulated: bool


def run(settings: Settings, database: Database, launch: Launch) -> int:
    """Own the attempt until it is closed. `database` has no connection yet. Returns an exit code."""
    run_dir = settings.run_dir(launch.job_id, launch.number)
    with RunLock(run_dir, patience_s=PATIENCE_S) as lock:
        if not lock.is_held:
            return BUSY
        notifier = Notifier(settings.broker_url)
        try:
            return _own(settings, launch, run_dir, database, notifier)
        except LeaseLost as error:
            log.warning("%s", error)
            return LOST
        finally:
            database.dispose()


def _own(settings: Settings, launch: Launch, run_dir: Path, database: Database, notifier: Notifier) -> int:
    attempt, job = _patiently(lambda: _read(database, launch), settings)
    ledger = Ledger(
        database,
        attempt_id=attempt.id,
        job_id=job.id,
        run_dir=run_dir,
        num_ranks=len(attempt.devices),
        max_log_bytes=settings.max_log_bytes,
    )
    job = _patiently(lambda: ledger.begin(boot_id=processes.boot_id()), settings)
    notifier.publish_job(job.id)
    try:
        if ledger.intent in cause.BY_INTENT:
            raise Refused(cause.BY_INTENT[ledger.intent])
        preparation.prepare(
            settings, database, job, run_dir, cpu_threads=launch.cpu_threads, simulated=launch.simulated
        )
        processes.become_subreaper()
        watch = Watch(run_dir)
        started = ranks.start(
            settings.trainer_module,
            run_dir=run_dir,
            attempt_id=attempt.id,
            devices=attempt.devices,
            device_type="cpu" if launch.simulated else attempt.device_type,
            cpu_threads=launch.cpu_threads,
            allow_network=settings.allow_network,
        )
    except Refused as error:
        _close_unstarted(ledger, error.verdict)
        notifier.publish_job(job.id)
        return DONE
    return Supervisor(settings, job, run_dir, started, watch, ledger, notifier).run()


def _read(database: Database, launch: Launch) -> tuple[Attempt, Job]:
    with database.read() as session:
        try:
            return attempts.get(session, launch.attempt_id), jobs.get(session, launch.job_id)
        except NotFound as error:
            raise LeaseLost(f"attempt {launch.attempt_id} is gone") from error


def _patiently(step: Callable[[], T], settings: Settings) -> T:
    """A database that is away for a moment costs a moment; one that stays away costs the launch, before the lease ends."""
    deadline = processes.boottime() + FENCE_TERM * settings.lease_s
    while True:
        try:
            return step()
        except SQLAlchemyError:
            if processes.boottime() >= deadline:
                raise
            log.warning("the database is away; trying again", exc_info=True)
            time.sleep(RETRY_S)


def _close_unstarted(ledger: Ledger, verdict: Verdict) -> None:
    while True:
        try:
            ledger.close(verdict, devices_clean=True)
            return
        except SQLAlchemyError:
            log.exception("the database is away; trying again")
            time.sleep(RETRY_S)


class Supervisor:
    """One attempt whose ranks run. What its threads share are plain attributes, each with one writer."""

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
        self._ranks, self._ledger, self._notifier = started, ledger, notifier
        self._started_at = processes.boottime()
        self._stop: StopAsked | None = None
        self._num_signals = 0
        self._is_clean = True
        self._verdict: Verdict | None = None
        self._is_lost = False
        self._is_listening = False
        self._should_look = False
        self._next_look = 0.0
        self._watch = watch
        self._wake = Wake()

    def run(self) -> int:
        """Until the attempt is closed, or its lease is lost and its ranks are gone."""
        self._take_signals()
        rows = threading.Thread(target=self._keep_rows, name="rows", daemon=True)
        rows.start()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        self._keep_ranks()
        self._verdict = self._judge()
        self._watch.wake()
        rows.join()
        return LOST if self._is_lost else DONE

    def _take_signals(self) -> None:
        """SIGTERM asks for a checkpoint and an end, as a host does that shuts down; the second, or SIGINT, does not wait for it."""
        signal.set_wakeup_fd(self._wake.fd_for_signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._was_asked(1))
        signal.signal(signal.SIGINT, lambda _number, _frame: self._was_asked(2))

    def _was_asked(self, weight: int) -> None:
        self._num_signals += weight

    def _keep_ranks(self) -> None:
        """Until no process is left, or what is left cannot be ended."""
        while True:
            self._ranks.collect()
            now = processes.boottime()
            self._consider_stop(now)
            if not self._ranks.running or self._is_lost or now >= self._kill_from():
                self._is_clean = ranks.end_all(self._ranks, within_s=QUARANTINE_S)
                return
            self._wake.wait(self._next_deadline() - now)

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
        intent, limit_s = self._ledger.intent, self._job.time_limit_s
        if intent in (Intent.CANCEL, Intent.PAUSE):
            return StopAsked(cause.BY_INTENT[intent], now)
        if limit_s is not None and now - self._started_at >= limit_s:
            words = f"ran into its time limit of {limit_s:g} s; submit it with a greater time_limit_s"
            return StopAsked(Verdict(ExitReason.TIME_LIMIT, words), now)
        if intent is Intent.PREEMPT or self._num_signals:
            return StopAsked(cause.BY_INTENT[Intent.PREEMPT], now)
        if now >= self._fence_at(FENCE_TERM):
            silence_s = now - self._ledger.renewed_at
            words = f"its supervisor could not reach the database for {silence_s:.0f} s"
            return StopAsked(Verdict(ExitReason.LEASE_EXPIRED, words), now)
        return None

    def _kill_from(self) -> float:
        """The boot time from which there is no more asking."""
        limits = [self._fence_at(FENCE_KILL)]
        if self._stop is not None:
            limits.append(self._stop.at + self._settings.stop_grace_s)
        if (first_failure_at := self._ranks.first_failure_at) is not None:
            limits.append(first_failure_at + self._settings.sibling_grace_s)
        if self._num_signals > 1:
            limits.append(0.0)
        return min(limits)

    def _next_deadline(self) -> float:
        deadlines = [self._kill_from()]
        if self._stop is None:
            deadlines.append(self._fence_at(FENCE_TERM))
            if self._job.time_limit_s is not None:
                deadlines.append(self._started_at + self._job.time_limit_s)
        return min(deadlines)

    def _fence_at(self, share: float) -> float:
        return self._ledger.renewed_at + share * self._settings.lease_s

    def _judge(self) -> Verdict:
        if self._ranks.running:
            numbers = ", ".join(str(rank.number) for rank in self._ranks.running)
            words = f"rank {numbers} cannot be killed; its devices are out of use until somebody has looked"
            return Verdict(ExitReason.INFRA, words)
        return cause.judge(self._ranks, self._run_dir, stop=self._stop)

    def _keep_rows(self) -> None:
        """The second thread: renew, commit what is new, close. Whatever the database does, it is tried again."""
        beat_at = self._next_beat()
        while True:
            try:
                if self._verdict is not None:
                    self._close(self._verdict)
                    return
                self._await_reason(beat_at)
                if self._verdict is None and self._commit(is_due=time.monotonic() >= beat_at):
                    beat_at = self._next_beat()
            except LeaseLost as error:
                log.warning("%s: ending its ranks", error)
                self._is_lost = True
                self._wake.wake()
                return
            except Exception:  # the thread's edge: without it the attempt would lose its lease over one bad moment
                log.exception("the rows could not be written; trying again")
                self._watch.wait(RETRY_S)

    def _next_beat(self) -> float:
        # Supervisors that started together should not write together.
        return time.monotonic() + self._settings.heartbeat_s * random.uniform(0.8, 1.0)  # noqa: S311

    def _await_reason(self, beat_at: float) -> None:
        """Until there is a reason for a transaction: the heart beats, a file has grown, or the attempt is over."""
        has_grown = False
        while self._verdict is None:
            if self._should_look:
                self._look_at_intent()
            now = time.monotonic()
            until = min(beat_at, self._next_look) if has_grown else beat_at
            if now >= until:
                return
            if self._is_listening:
                has_grown |= self._watch.wait(until - now)
            else:
                has_grown |= self._watch.wait(min(until - now, POLL_S))
                self._should_look = True

    def _commit(self, *, is_due: bool) -> bool:
        """Write what is new, or renew the lease where that is due. Answers whether it was renewed."""
        before, is_renewed, pause_s = self._ledger.intent, is_due, NOISE_S
        news = self._ledger.commit(renew=is_due)
        while not news.is_empty:
            is_renewed, pause_s = True, BATCH_S
            self._notifier.publish_job(self._job.id)
            if not news.more:
                break
            news = self._ledger.commit(renew=False)
        self._next_look = time.monotonic() + pause_s
        if self._ledger.intent is not before:
            self._wake.wake()
        return is_renewed

    def _close(self, verdict: Verdict) -> None:
        closing = self._ledger.close(verdict, devices_clean=self._is_clean, is_stuck=not self._is_clean)
        log.info("closed: %s, the job is %s", verdict.reason.value, closing.job_status.value)
        self._notifier.publish_job(self._job.id)
        self._notifier.publish_host(self._settings.host_name)

    def _look_at_intent(self) -> None:
        self._should_look = False
        before = self._ledger.intent
        self._ledger.look_at_intent()
        if self._ledger.intent is not before:
            self._wake.wake()

    def _listen(self) -> None:
        """The third thread: a wake-up makes the second one look at once. While it cannot listen, that one polls."""
        while self._verdict is None:
            try:
                with self._notifier.subscribed(channel_intent(self._job.id)) as pubsub:
                    pubsub.get_message(
                        timeout=RETRY_S
                    )  # the subscription's confirmation: from here on nothing is missed
                    self._is_listening = True
                    self._ask_to_look()
                    while self._verdict is None:
                        if pubsub.get_message(timeout=LISTEN_S) is not None:
                            self._ask_to_look()
            except (redis.RedisError, OSError, ValueError):
                self._is_listening = False
                time.sleep(RETRY_S)

    def _ask_to_look(self) -> None:
        self._should_look = True
        self._watch.wake()
