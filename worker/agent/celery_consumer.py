"""Owns the Celery tasks of a worker. Each is a hint: it pokes the host loop, which reads the database, and is done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from celery import Celery
from celery.worker import WorkController

from store import celery_app

RESTART_S: Final = 1.0

log = logging.getLogger(__name__)


def define(celery: Celery, poke: Callable[[], None]) -> None:
    """Register the tasks. A lost, late, doubled or forged message changes when the loop looks, and nothing else."""

    def hint(attempt_id: str = "") -> None:
        poke()

    for name in (celery_app.SCHEDULE, celery_app.LAUNCH, celery_app.SWEEP):
        celery.task(name=name)(hint)


def consume(celery: Celery, host: str) -> threading.Thread:
    """Run Celery in a thread of its own that ends with the process: the main thread is the host loop's, with or without a broker."""
    thread = threading.Thread(target=_consume, args=(celery, host), name="celery", daemon=True)
    thread.start()
    return thread


def _consume(celery: Celery, host: str) -> None:
    while True:
        try:
            WorkController(
                app=celery,
                hostname=f"longyard@{host}",
                queues=[celery_app.QUEUE, celery_app.queue_of(host)],
                pool_cls="solo",
                concurrency=1,
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
            ).start()
        except Exception:  # the thread's edge: without Celery the host loop finds everything a few seconds later
            log.exception("celery has ended; starting it again")
        time.sleep(RESTART_S)
