"""`python -m worker`: this host's Celery worker, host loop and launcher. SIGTERM or ^C drains; the same again hurries."""

from __future__ import annotations

import logging
import os
import signal
import sys

from store import broker
from store.db import SUPERVISOR_BUSY_TIMEOUT_S, Database
from store.notify import Notifier
from store.settings import Settings
from worker import devices, tasks
from worker.host import HostLoop
from worker.journal import configure

log = logging.getLogger(__name__)


def main() -> None:
    settings = Settings()
    configure(settings, host=settings.host_name)
    inventory = devices.survey(settings)
    log.info("%d %s devices: %s", len(inventory.names), inventory.device_type, ", ".join(inventory.names))
    celery = broker.app(settings.broker_url)
    database = Database(settings.db_url, busy_timeout_s=SUPERVISOR_BUSY_TIMEOUT_S)
    loop = HostLoop(settings, database, Notifier(settings.broker_url), broker.Sender(celery), inventory)
    signal.set_wakeup_fd(loop.fd_for_signals, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda signum, _frame: loop.ask_to_leave(signum))
    tasks.define(celery, loop.poke)
    tasks.consume(celery, settings.host_name)
    loop.run()
    database.dispose()
    # Celery's thread may wait for a broker that is away: there is nothing of it to wait for.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
