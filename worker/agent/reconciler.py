"""Owns that every open attempt of this host has a living supervisor, gets one, or is recovered; and that doubtful devices are looked at."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy.exc import InterfaceError, OperationalError

from linux import proc
from store import attempts, jobs
from store.db import Database
from store.models import Attempt
from store.pubsub import Notifier
from store.settings import Settings
from store.states import AttemptStatus, Intent
from worker.agent import recovery
from worker.agent.recovery import Recovery
from worker.devices.inventory import Inventory
from worker.forkserver.client import Standby
from worker.forkserver.server import Told
from worker.supervisor import exit_reason, run_lock, startup
from worker.supervisor.startup import Launch

log = logging.getLogger(__name__)

LEAST_PATIENCE_S: Final = 30.0
"""An attempt that nobody has begun for so long, or for the lease's length, is closed: whatever was asked of the launcher is lost."""


class Care:
    """What the host loop does about its attempts, a turn at a time. `is_stuck`: has this beat stood still for the lease's length?"""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        notifier: Notifier,
        standby: Standby,
        inventory: Inventory,
        *,
        is_stuck: Callable[[str, int], bool],
    ) -> None:
        self._settings, self._database, self._notifier = settings, database, notifier
        self._standby, self._inventory, self._is_stuck = standby, inventory, is_stuck
        self.num_open = 0
        self._seen_at: dict[str, float] = {}
        self._looked_at = 0.0
        self._look_again_at = 0.0
        self._launched: set[str] = set()
        self._ended: dict[str, int] = {}
        self._recoveries: dict[str, Recovery] = {}

    @property
    def is_recovering(self) -> bool:
        return bool(self._recoveries)

    def hear(self, told: Told) -> None:
        """Of the launcher's end, or of a supervisor's."""
        if told.kind == "lost":
            self._launched.clear()
            return
        self._launched.discard(told.attempt_id)
        if told.exit_code != startup.BUSY:
            self._ended[told.attempt_id] = told.exit_code

    def follow(self, *, is_leaving: bool) -> None:
        """Read what this host has to look after, and begin what is missing."""
        with self._database.read() as session:
            found = attempts.open_on_host(session, self._settings.host_name)
            doubtful = recovery.unverified(session, self._settings.host_name)
            waiting = [] if self._standby.is_ready else [one for one in found if one.status is AttemptStatus.STARTING]
            intents = {one.id: jobs.get(session, one.job_id).intent for one in waiting}
        self.num_open = len(found)
        self._note_time(found)
        for attempt in found:
            if attempt.id not in self._recoveries:
                self._look_after(attempt, intents.get(attempt.id, Intent.RUN), is_leaving=is_leaving)
        for attempt in doubtful:
            if (begun := self._recoveries.get(attempt.id)) is not None:
                begun.was_closed()
                continue
            words = "closed by others: looking for what it left"
            self._begin_recovery(attempt, words, is_closed=True, kill_supervisor=True)
        self._ended.clear()

    def recover(self) -> bool:
        """One step of each recovery; answers whether one of them is done."""
        done = [attempt_id for attempt_id, one in self._recoveries.items() if _alone(one.step)]
        for attempt_id in done:
            del self._recoveries[attempt_id]
        return bool(done)

    def look_again(self) -> bool:
        """At quarantined devices, as often as the host loop turns by itself; answers whether some are free now."""
        now = proc.boottime()
        if now < self._look_again_at:
            return False
        self._look_again_at = now + self._settings.host_loop_s
        with self._database.read() as session:
            waiting = recovery.quarantined(session, self._settings.host_name)
        done = [
            _alone(partial(recovery.look_again, self._settings, self._database, self._notifier, one)) for one in waiting
        ]
        return any(done)

    def signal_supervisors(self, signum: signal.Signals) -> None:
        """By their locks, which need no database. This host's alone: others may share the data directory."""
        for path in self._settings.jobs_dir.glob(f"*/a*/{run_lock.FILE}"):
            run_lock.signal_supervisor(path.parent, signum, host=self._settings.host_name)

    def leave(self) -> None:
        for one in self._recoveries.values():
            one.leave()

    def _note_time(self, found: Sequence[Attempt]) -> None:
        """Since when each is here. What could not be watched for a while is watched anew: the database was away for everybody."""
        now = proc.boottime()
        if now - self._looked_at > LEAST_PATIENCE_S / 2:
            self._seen_at = {}
        self._looked_at = now
        self._seen_at = {attempt.id: self._seen_at.get(attempt.id, now) for attempt in found}

    def _look_after(self, attempt: Attempt, intent: Intent, *, is_leaving: bool) -> None:
        if attempt.status is AttemptStatus.RUNNING and self._is_stuck(attempt.id, attempt.beat):
            self._begin_recovery(attempt, "its supervisor has not renewed its lease", kill_supervisor=True)
        elif self._was_forgotten(attempt):
            self._begin_recovery(attempt, "nobody began it: its host's launcher does not answer", kill_supervisor=True)
        elif attempt.id not in self._launched and run_lock.holder(self._run_dir(attempt)) is None:
            self._give_supervisor(attempt, intent, is_leaving=is_leaving)

    def _was_forgotten(self, attempt: Attempt) -> bool:
        patience_s = max(LEAST_PATIENCE_S, self._settings.lease_s)
        return attempt.status is AttemptStatus.STARTING and proc.boottime() - self._seen_at[attempt.id] > patience_s

    def _give_supervisor(self, attempt: Attempt, intent: Intent, *, is_leaving: bool) -> None:
        exit_code = self._ended.get(attempt.id)
        if attempt.status is not AttemptStatus.STARTING or exit_code is not None:
            self._begin_recovery(attempt, _say_how(attempt, exit_code))
        elif is_leaving:
            self._begin_recovery(attempt, "its host shut down before it began")
        elif self._standby.launch(self._request(attempt)):
            self._launched.add(attempt.id)
        elif intent in exit_reason.BY_INTENT:
            self._begin_recovery(attempt, "nobody wants it any more")
        elif (words := self._standby.failure) is not None:
            self._begin_recovery(attempt, f"host {self._settings.host_name} cannot start supervisors: {words}")

    def _request(self, attempt: Attempt) -> Launch:
        return Launch.of(attempt, cpu_threads=self._inventory.cpu_threads, simulated=self._inventory.simulated)

    def _begin_recovery(
        self, attempt: Attempt, words: str, *, is_closed: bool = False, kill_supervisor: bool = False
    ) -> None:
        self._recoveries[attempt.id] = Recovery(
            self._settings,
            self._database,
            self._notifier,
            attempt,
            words=words,
            is_closed=is_closed,
            kill_supervisor=kill_supervisor,
        )

    def _run_dir(self, attempt: Attempt) -> Path:
        return self._settings.run_dir(attempt.job_id, attempt.number)


def _alone(step: Callable[[], bool]) -> bool:
    """What one attempt left must not keep the host from the others: it is told, and tried again at the next turn.

    Raises what says that the database is away.
    """
    try:
        return step()
    except (OperationalError, InterfaceError):
        raise
    # A full disk, or what nobody foresaw in a file.
    except Exception:
        log.exception("one attempt could not be cleaned up; the others are looked after")
        return False


def _say_how(attempt: Attempt, exit_code: int | None) -> str:
    if exit_code is None:
        is_older = attempt.boot_id is not None and attempt.boot_id != proc.boot_id()
        return f"host {attempt.host} was restarted" if is_older else "its supervisor is gone"
    if exit_code < 0:
        return f"its supervisor was killed by {proc.signal_name(-exit_code)}"
    return f"its supervisor ended with exit code {exit_code}"
