"""Owns an attempt from the request to its first rank: begin it, prepare what the ranks read, and keep the lease meanwhile."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from linux import proc
from linux.cgroup import Cgroup
from linux.inotify import Watch
from store import checkpoints, jobs
from store.db import Database
from store.errors import LeaseLost, NotFound
from store.models import Attempt, Checkpoint, Job
from store.pubsub import Notifier
from store.settings import Settings
from store.states import ExitReason
from worker.ingest.writer import Ledger
from worker.supervisor import exit_reason, fence, ranks, run_config
from worker.supervisor.exit_reason import Verdict
from worker.supervisor.ranks import Ranks
from worker.supervisor.resumption import Choice
from worker.supervisor.run_config import Refused
from worker.supervisor.run_lock import RunLock
from worker.supervisor.supervisor import Supervisor

RETRY_S: Final = 0.5
PATIENCE_S: Final = 0.2

DONE, BUSY, LOST, FAILED = 0, 10, 11, 12
"""Exit codes: closed; another supervisor has the attempt; the lease was lost; could not even begin."""

DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """What the host loop asks for, at a boot time: of the attempt what never changes. `cpu_threads` is a rank's share of the cores."""

    attempt_id: str
    job_id: str
    number: int
    devices: Sequence[int]
    device_type: str
    cpu_threads: int
    simulated: bool
    asked_at: float

    @classmethod
    def of(cls, attempt: Attempt, *, cpu_threads: int, simulated: bool) -> Self:
        return cls(
            attempt_id=attempt.id,
            job_id=attempt.job_id,
            number=attempt.number,
            devices=attempt.devices,
            device_type=attempt.device_type,
            cpu_threads=cpu_threads,
            simulated=simulated,
            asked_at=proc.boottime(),
        )

    @property
    def runs_on(self) -> str:
        """The type of the devices it was placed on, where the job may have asked for any; those of a simulated host are CPUs."""
        return "cpu" if self.simulated else self.device_type


def run(settings: Settings, database: Database, notifier: Notifier, launch: Launch) -> int:
    """Own the attempt until it is closed. `database` and `notifier` have no connection yet. Returns an exit code."""
    run_dir = settings.run_dir(launch.job_id, launch.number)
    with RunLock(run_dir, host=settings.host_name, patience_s=PATIENCE_S) as lock:
        if not lock.is_held:
            return BUSY
        try:
            return Opening(settings, launch, run_dir, database, notifier).own()
        except LeaseLost as error:
            log.warning("%s", error)
            return LOST
        finally:
            database.dispose()


class Opening:
    """The time before the ranks run: one thread, but for the one that reads files while this one keeps the lease."""

    def __init__(
        self, settings: Settings, launch: Launch, run_dir: Path, database: Database, notifier: Notifier
    ) -> None:
        self._settings, self._launch, self._run_dir = settings, launch, run_dir
        self._database, self._notifier = database, notifier
        self._began = proc.boottime()

    def own(self) -> int:
        ledger = self.ledger()
        job = self.begin(ledger)
        self._notifier.publish_job(job.id)
        try:
            self._prepare(ledger, job)
            proc.become_subreaper()
            watch = Watch(self._run_dir)
            self._be_sure_of_lease(ledger)
            started = self._start()
        except Refused as error:
            self._close_unstarted(ledger, error.verdict)
            return DONE
        except OSError as error:
            log.exception("its ranks cannot be started")
            is_clean = not proc.of_attempt(self._launch.attempt_id)
            self._close_unstarted(ledger, self._verdict_on(error), is_clean=is_clean)
            return DONE
        ledger.launch_s = proc.boottime() - self._launch.asked_at
        supervisor = Supervisor(self._settings, job, self._run_dir, started, watch, ledger, self._notifier)
        return DONE if supervisor.run() else LOST

    def ledger(self) -> Ledger:
        return Ledger(
            self._database,
            attempt_id=self._launch.attempt_id,
            job_id=self._launch.job_id,
            run_dir=self._run_dir,
            num_ranks=len(self._launch.devices),
            max_log_bytes=self._settings.max_log_bytes,
            retry_s=self._settings.retry_s,
        )

    def begin(self, ledger: Ledger) -> Job:
        """The reply to a first try may be lost after its commit: who holds the run lock and finds no process of it has begun it, or may."""
        has_failed = False

        def once() -> Job:
            nonlocal has_failed
            try:
                return ledger.begin(boot_id=proc.boot_id())
            except SQLAlchemyError:
                has_failed = True
                raise
            except LeaseLost:
                if not has_failed or proc.of_attempt(self._launch.attempt_id):
                    raise
                ledger.adopt(self._began)
                return self._job()

        return self._patiently(once, since=self._began)

    def _job(self) -> Job:
        with self._database.read() as session:
            try:
                return jobs.get(session, self._launch.job_id)
            except NotFound as error:
                raise LeaseLost(f"attempt {self._launch.attempt_id} is gone") from error

    def _prepare(self, ledger: Ledger, job: Job) -> None:
        """Write config.json. What was found of the checkpoints is told with a renewal, so the ranks start under a fresh lease."""
        _check_intent(ledger)
        # A first attempt has none to look for.
        is_first = self._launch.number == 1
        rows = [] if is_first else self._patiently(lambda: self._checkpoints(job.id), since=ledger.renewed_at)
        choice = self._while_renewing(
            ledger,
            lambda is_over: run_config.prepare(
                self._settings,
                job,
                rows,
                self._run_dir,
                cpu_threads=self._launch.cpu_threads,
                device_type=self._launch.runs_on,
                devices=self._launch.devices,
                is_over=is_over,
            ),
        )
        if rows:
            self._tell(ledger, choice)
            _check_intent(ledger)

    def _tell(self, ledger: Ledger, choice: Choice) -> None:
        if choice.missing is not None:
            one = choice.missing
            ledger.note("checkpoint_missing", attempt=self._launch.number, step=one.step, dir=one.dir)
        if choice.found is not None:
            one = choice.found
            ledger.note("resuming", attempt=self._launch.number, step=one.step, dir=one.dir)

        def condemn(session: Session, job: Job) -> None:
            for one in choice.corrupt:
                checkpoints.condemn(session, job, one.id)

        self._patiently(lambda: ledger.record(condemn), since=ledger.renewed_at)

    def _checkpoints(self, job_id: str) -> list[Checkpoint]:
        with self._database.read() as session:
            return list(checkpoints.newest_first(session, job_id))

    def _while_renewing(self, ledger: Ledger, work: Callable[[Callable[[], bool]], Choice]) -> Choice:
        """`work` in a thread of its own that is gone afterwards: ranks are forked from a process with one. Raises what it raises."""
        answer: list[Choice | Exception] = []
        is_over = threading.Event()

        def run() -> None:
            try:
                answer.append(work(is_over.is_set))
            except Exception as error:  # noqa: BLE001  # the thread's edge: handed to the one that waits
                answer.append(error)

        thread = threading.Thread(target=run, name="files")
        thread.start()
        try:
            while True:
                thread.join(self._settings.heartbeat_s)
                if not thread.is_alive():
                    break
                self._renew(ledger)
        finally:
            is_over.set()
            thread.join()
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def _renew(self, ledger: Ledger) -> None:
        self._patiently(ledger.commit, since=ledger.renewed_at)
        self._notifier.publish_job(self._launch.job_id)
        _check_intent(ledger)

    def _be_sure_of_lease(self, ledger: Ledger) -> None:
        """A process can stand still for longer than its lease lasts; ranks are not for who may have lost it. Raises LeaseLost."""
        if proc.boottime() >= ledger.renewed_at + fence.TERM_SHARE * self._settings.lease_s:
            self._renew(ledger)

    def _verdict_on(self, error: OSError) -> Verdict:
        """Of this host: no process, no file or no room for one. Nothing that the job's user could mend."""
        reason = ExitReason.STORAGE if error.errno in DISK_ERRORS else ExitReason.LAUNCH_ERROR
        where = f" ({error.filename})" if error.filename else ""
        return Verdict(reason, f"host {self._settings.host_name} could not start it: {error.strerror}{where}")

    def _start(self) -> Ranks:
        return ranks.start(
            self._settings.trainer_module,
            run_dir=self._run_dir,
            attempt_id=self._launch.attempt_id,
            devices=self._launch.devices,
            device_type=self._launch.device_type,
            simulated_host=self._settings.host_name if self._launch.simulated else None,
            cpu_threads=self._launch.cpu_threads,
            allow_network=self._settings.allow_network,
            cgroup=Cgroup.make(self._launch.attempt_id, self._run_dir) if self._settings.cgroups else None,
        )

    def _patiently(self, step: Callable[[], T], *, since: float) -> T:
        """A database that is away for a moment costs a moment; one that stays away costs the launch, before the lease ends."""
        while True:
            try:
                return step()
            except SQLAlchemyError:
                if proc.boottime() >= fence.stops_at(self._settings, since):
                    raise
                log.warning("the database is away; trying again", exc_info=True)
                time.sleep(RETRY_S)

    def _close_unstarted(self, ledger: Ledger, verdict: Verdict, *, is_clean: bool = True) -> None:
        while True:
            try:
                ledger.close(verdict, devices_clean=is_clean)
                break
            except SQLAlchemyError:
                log.exception("the database is away; trying again")
                time.sleep(RETRY_S)
        self._notifier.publish_job(self._launch.job_id)


def _check_intent(ledger: Ledger) -> None:
    """Raises Refused where the job is not wanted to run any more."""
    if ledger.intent in exit_reason.BY_INTENT:
        raise Refused(exit_reason.BY_INTENT[ledger.intent])
