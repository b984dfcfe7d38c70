"""Owns the host loop: what this host does, by the database alone, every few seconds or as soon as somebody pokes it."""

from __future__ import annotations

import logging
import signal
import time
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from linux import proc
from linux.wakeup import Wake
from store import attempts, hosts, jobs
from store.celery_app import Sender
from store.db import Database
from store.errors import NotFound
from store.pubsub import Notifier
from store.settings import Settings
from worker.agent.health_monitor import Health
from worker.agent.lease_monitor import Sweeper
from worker.agent.reconciler import Care
from worker.agent.scheduling import Planner
from worker.devices.inventory import Inventory
from worker.forkserver.client import Standby

RETRY_S: Final = 1.0
RECOVERY_TURN_S: Final = 0.02
PASS_SHARE: Final = 5.0
LONGEST_PAUSE_S: Final = 0.25
"""Between two passes lies five times what the last one took, at most a quarter of a second: many closings do not become as many passes."""
LEAVE_S: Final = 10.0

log = logging.getLogger(__name__)


class HostLoop:
    """The main thread of a worker, from start to drained. `poke` and `ask_to_leave` may be called from anywhere."""

    def __init__(
        self, settings: Settings, database: Database, notifier: Notifier, sender: Sender, inventory: Inventory
    ) -> None:
        self._settings, self._database, self._notifier, self._sender = settings, database, notifier, sender
        self._inventory = inventory
        self._planner, self._sweeper = (
            Planner(database, quotas=settings.quotas, weights=settings.weights),
            Sweeper(settings, database),
        )
        self._wake = Wake()
        self._standby = Standby(settings.host_dir / "launcher.log")
        self._care = Care(settings, database, notifier, self._standby, inventory, is_stuck=self._sweeper.is_stuck)
        self._health = Health(settings, database, inventory, tell=self._wake.wake)
        self._is_hinted = True
        self._beat_at = self._plan_at = 0.0
        self._retry_at: float | None = None
        self._asked: dict[int, int] = {}
        self._leave_by: float | None = None
        self._has_told = False
        self._has_hurried = False

    @property
    def fd_for_signals(self) -> int:
        return self._wake.fd_for_signals

    def poke(self) -> None:
        """Somebody says that there is something to do: look now."""
        self._is_hinted = True
        self._wake.wake()

    def ask_to_leave(self, signum: int) -> None:
        """Drain. The same signal again hurries: ^C and the SIGTERM of whoever started us arrive together."""
        self._asked[signum] = self._asked.get(signum, 0) + 1

    def run(self) -> None:
        """Until this host is drained, or does not get there in time."""
        self._health.start()
        while True:
            try:
                self._turn()
                pause_s = self._pause_s()
            except SQLAlchemyError as error:
                log.warning("the database is away: %s", error)
                pause_s = RETRY_S
            if self._has_left():
                break
            self._wake.wait(pause_s, also=self._standby.filenos())
        self._close()

    def _turn(self) -> None:
        self._hear()
        if self._asked:
            self._drain()
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat()
            self._sweep()
            self._beat_at = now + self._settings.host_loop_s
        turned = self._health.turn()
        if turned.is_written:
            self._notifier.publish_host(self._settings.host_name)
        if turned.is_news:
            self._ask_for_plan()
        if self._is_hinted or self._sweeper.has_role:
            self._plan()
        self._care.follow(is_leaving=bool(self._asked))
        if self._care.recover() or self._care.look_again():
            self.poke()

    def _hear(self) -> None:
        for told in self._standby.heard():
            self._care.hear(told)
            self._ask_for_plan()

    def _ask_for_plan(self) -> None:
        """Devices are free: this worker plans, or tells whoever does."""
        if self._sweeper.has_role:
            self._is_hinted = True
        else:
            self._sender.schedule()

    def _beat(self) -> None:
        with self._database.write() as session:
            if self._beat_at > 0:
                try:
                    hosts.beat(session, self._settings.host_name)
                    return
                except NotFound:
                    log.warning("this host is not known any more; registering again")
            hosts.register(
                session,
                self._settings.host_name,
                device_type=self._inventory.device_type,
                device_names=self._inventory.names,
                boot_id=proc.boot_id(),
                versions=self._inventory.versions,
                simulated=self._inventory.simulated,
            )
        self._notifier.publish_host(self._settings.host_name)

    def _sweep(self) -> None:
        for expired in self._sweeper.sweep():
            self._notifier.publish_job(expired.job_id)

    def _plan(self) -> None:
        if (began := time.monotonic()) < self._plan_at:
            return
        self._is_hinted = False
        done = self._planner.run()
        now = time.monotonic()
        self._plan_at = now + min(LONGEST_PAUSE_S, PASS_SHARE * (now - began))
        self._retry_at = None if done.again_in_s is None else now + done.again_in_s
        for placed in done.placed:
            self._notifier.publish_job(placed.job_id)
            self._notifier.publish_host(placed.host)
            if placed.host != self._settings.host_name:
                self._sender.launch(placed.host, placed.attempt_id)
        for job_id in done.asked:
            self._notifier.publish_intent(job_id)
        for job_id in [*done.asked, *done.told]:
            self._notifier.publish_job(job_id)

    def _drain(self) -> None:
        """Once: take nothing new, ask for checkpoints. Again, when asked again: end what still runs."""
        is_first = self._leave_by is None
        if self._leave_by is None:
            self._leave_by = time.monotonic() + self._settings.stop_grace_s + LEAVE_S
        if not self._has_told:
            try:
                self._ask_attempts_to_stop()
                self._has_told = True
            except SQLAlchemyError:
                if is_first:
                    log.exception("the database is away: asking the supervisors by signal")
                    self._care.signal_supervisors(signal.SIGTERM)
        if not self._has_hurried and max(self._asked.values()) > 1:
            self._has_hurried = True
            self._care.signal_supervisors(signal.SIGINT)

    def _ask_attempts_to_stop(self) -> None:
        log.info("draining")
        with self._database.write() as session:
            hosts.leave(session, self._settings.host_name)
            asked = [attempt.job_id for attempt in attempts.open_on_host(session, self._settings.host_name)]
            for job_id in asked:
                jobs.preempt(session, job_id, why=f"host {self._settings.host_name} is shutting down")
        for job_id in asked:
            self._notifier.publish_intent(job_id)
            self._notifier.publish_job(job_id)
        self._notifier.publish_host(self._settings.host_name)

    def _has_left(self) -> bool:
        if self._leave_by is None:
            return False
        is_over = self._care.num_open == 0 and not self._care.is_recovering
        if not is_over and time.monotonic() >= self._leave_by:
            log.error("%d attempts did not stop in time; their supervisors go on", self._care.num_open)
            return True
        return is_over

    def _pause_s(self) -> float:
        if self._care.is_recovering:
            return RECOVERY_TURN_S
        moments = [self._beat_at, self._standby.act_at]
        if self._is_hinted:
            moments.append(self._plan_at)
        if self._retry_at is not None:
            moments.append(self._retry_at)
        if self._leave_by is not None:
            moments.append(self._leave_by)
        return max(0.0, min(moments) - time.monotonic())

    def _close(self) -> None:
        self._care.leave()
        try:
            self._sweeper.leave()
        except SQLAlchemyError:
            log.warning("the sweep role was not handed back")
        self._standby.close()
