"""Owns what is done for an attempt of this host whose supervisor is dead: end what it left, drain its files, close it, free its devices.

Each step waits for nothing, so that the host loop goes on meanwhile.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy.orm import Session

from linux import proc
from linux.cgroup import Cgroup
from store import attempts, events, hosts, jobs
from store.db import Database
from store.errors import LeaseLost, NotFound
from store.models import Attempt
from store.pubsub import Notifier
from store.settings import Settings
from store.states import AttemptStatus, DeviceState, ExitReason, Intent
from worker.ingest.writer import Ledger
from worker.supervisor import exit_reason, run_lock
from worker.supervisor.exit_reason import Verdict
from worker.supervisor.run_lock import RunLock

log = logging.getLogger(__name__)


class Recovery:
    """One attempt on its way out. Call `step` until it answers True; it raises SQLAlchemyError while the database is away.

    `is_closed`: somebody else has closed it, and only its devices wait. `kill_supervisor`: it lives, but its lease is over.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        notifier: Notifier,
        attempt: Attempt,
        *,
        words: str,
        is_closed: bool = False,
        kill_supervisor: bool = False,
    ) -> None:
        self._settings, self._database, self._notifier = settings, database, notifier
        self._attempt, self._words = attempt, words
        self._is_closed, self._kill_supervisor = is_closed, kill_supervisor
        self._run_dir = settings.run_dir(attempt.job_id, attempt.number)
        self._lock: RunLock | None = None
        self._since = proc.boottime()
        self._killed_at: float | None = None
        log.warning("attempt %s: %s", attempt.id, words)

    def step(self) -> bool:
        """True when there is nothing more to do, also where the attempt turns out to be alive or closed."""
        has_lock = self._take_lock() is not None
        if not has_lock and not self._kill_supervisor:
            return True
        cgroup = Cgroup.of_run(self._attempt.id, self._run_dir)
        strays = proc.of_attempt(self._attempt.id)
        # Without the lock it is the supervisor itself that no SIGKILL has ended yet, and perhaps never will.
        is_left = not has_lock or bool(strays) or (cgroup is not None and cgroup.is_populated)
        if is_left and not self._is_given_up(strays, cgroup, proc.boottime()):
            return False
        if cgroup is not None:
            cgroup.remove()
        try:
            self._finish(is_stuck=is_left)
        except LeaseLost:
            log.info("attempt %s was closed by somebody else", self._attempt.id)
        self.leave()
        return True

    def was_closed(self) -> None:
        """By somebody else, since: what its ranks would save now nobody reads, and its job waits for their end."""
        self._is_closed = True

    def leave(self) -> None:
        """Let the lock go; whoever finds the attempt next begins again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _is_given_up(self, strays: list[int], cgroup: Cgroup | None, now: float) -> bool:
        """End them, with the time that ranks need which are saving: they got SIGTERM when their supervisor died."""
        grace_s = self._settings.stop_grace_s if self._kill_supervisor else self._settings.sibling_grace_s
        if not self._is_closed and now - self._since < grace_s:
            return False
        _kill(strays, cgroup)
        if self._killed_at is None:
            self._killed_at = now
        return now - self._killed_at >= self._settings.quarantine_s

    def _take_lock(self) -> RunLock | None:
        """While we hold it no supervisor of this attempt can start."""
        if self._lock is None:
            if self._kill_supervisor:
                run_lock.signal_supervisor(self._run_dir, signal.SIGKILL, host=self._attempt.host)
            lock = RunLock(self._run_dir)
            if not lock.is_held:
                lock.release()
                return None
            self._lock = lock
        return self._lock

    def _finish(self, *, is_stuck: bool) -> None:
        attempt = self._attempt
        if self._is_closed:
            with self._database.write() as session:
                job = jobs.touch(session, attempt.job_id)
                if is_stuck:
                    hosts.quarantine(session, attempt.id)
                    events.append(
                        session, job, kind="devices_quarantined", attempt=attempt.number, devices=attempt.devices
                    )
                else:
                    hosts.free(session, attempt.id)
        else:
            ledger = Ledger(
                self._database,
                attempt_id=attempt.id,
                job_id=attempt.job_id,
                run_dir=self._run_dir,
                num_ranks=len(attempt.devices),
                max_log_bytes=self._settings.max_log_bytes,
                retry_s=self._settings.retry_s,
            )
            ledger.look_at_intent()
            ledger.close(self._verdict(ledger.intent), devices_clean=not is_stuck, is_stuck=is_stuck)
            self._notifier.publish_job(attempt.job_id)
        self._notifier.publish_host(attempt.host)

    def _verdict(self, intent: Intent) -> Verdict:
        if self._attempt.status is AttemptStatus.STARTING:
            reason = ExitReason.LAUNCH_ERROR
        else:
            reason = ExitReason.LEASE_EXPIRED if self._kill_supervisor else ExitReason.INFRA
        verdict = exit_reason.from_files(
            self._run_dir, num_ranks=len(self._attempt.devices), otherwise=Verdict(reason, self._words)
        )
        return verdict if verdict.reason is ExitReason.COMPLETED else exit_reason.BY_INTENT.get(intent, verdict)


def look_again(settings: Settings, database: Database, notifier: Notifier, attempt: Attempt) -> bool:
    """Free the quarantined devices of a closed attempt, if no process of it is left by now; else end what is. Says whether it did."""
    with RunLock(settings.run_dir(attempt.job_id, attempt.number)) as lock:
        if not lock.is_held:
            return False
        cgroup = Cgroup.of_run(attempt.id, settings.run_dir(attempt.job_id, attempt.number))
        strays = proc.of_attempt(attempt.id)
        if strays or (cgroup is not None and cgroup.is_populated):
            _kill(strays, cgroup)
            return False
        if cgroup is not None:
            cgroup.remove()
        with database.write() as session:
            job = jobs.touch(session, attempt.job_id)
            hosts.free(session, attempt.id)
            events.append(session, job, kind="devices_freed", attempt=attempt.number, devices=attempt.devices)
    log.warning("attempt %s: its last process is gone, devices %s are free again", attempt.id, attempt.devices)
    notifier.publish_job(attempt.job_id)
    notifier.publish_host(attempt.host)
    return True


def unverified(session: Session, host: str) -> list[Attempt]:
    """Attempts of this host that others closed, whose devices wait for somebody to look."""
    return _known(session, hosts.in_doubt(session, host, DeviceState.UNVERIFIED))


def quarantined(session: Session, host: str) -> list[Attempt]:
    """Attempts of this host that are closed while a process of theirs could not be ended."""
    return _known(session, hosts.in_doubt(session, host, DeviceState.QUARANTINED))


def _known(session: Session, attempt_ids: Sequence[str]) -> list[Attempt]:
    found: list[Attempt] = []
    for attempt_id in attempt_ids:
        with suppress(NotFound):
            found.append(attempts.get(session, attempt_id))
    return found


def _kill(strays: list[int], cgroup: Cgroup | None) -> None:
    if cgroup is not None:
        cgroup.kill()
    proc.send(strays, signal.SIGKILL)
