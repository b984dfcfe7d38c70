"""`python -m worker`: this host's Celery worker, host loop and launcher. SIGTERM or ^C drains; the same again hurries."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys

from store import celery_app
from store.db import SUPERVISOR_BUSY_TIMEOUT_S, Database
from store.errors import BadSettings
from store.pubsub import Notifier
from store.settings import Settings, load
from worker.agent import celery_consumer
from worker.agent.loop import HostLoop
from worker.devices import inventory as devices
from worker.devices.inventory import NoDevices
from worker.journal import configure

log = logging.getLogger(__name__)


def main() -> None:
    try:
        settings = load()
    except BadSettings as error:
        sys.exit(str(error))
    # Logs and weights are for its own account, and its attempts inherit this.
    os.umask(0o077)
    lock = _only_one(settings)
    configure(settings, host=settings.host_name)
    try:
        inventory = devices.survey(settings)
    except NoDevices as error:
        sys.exit(str(error))
    log.info("%d %s devices: %s", len(inventory.names), inventory.device_type, ", ".join(inventory.names))
    celery = celery_app.app(settings.broker_url)
    database = Database(settings.db_url, busy_timeout_s=SUPERVISOR_BUSY_TIMEOUT_S)
    loop = HostLoop(settings, database, Notifier(settings.broker_url), celery_app.Sender(celery), inventory)
    signal.set_wakeup_fd(loop.fd_for_signals, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda signum, _frame: loop.ask_to_leave(signum))
    celery_consumer.define(celery, loop.poke)
    celery_consumer.consume(celery, settings.host_name)
    loop.run()
    database.dispose()
    os.close(lock)
    # Celery's thread may wait for a broker that is away: there is nothing of it to wait for.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _only_one(settings: Settings) -> int:
    """Two workers of one host would each believe its devices theirs, and the one that leaves would drain the other's attempts."""
    settings.host_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(settings.host_dir / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(
            f"a worker runs as {settings.host_name} on {settings.data_dir} already; give this one a LONGYARD_HOST_NAME of its own"
        )
    return descriptor


if __name__ == "__main__":
    main()
