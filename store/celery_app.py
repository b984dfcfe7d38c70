"""The Celery app's name and what may be sent to it. A message is a hint, a row is the truth: sending never fails a caller."""

from __future__ import annotations

import threading
import time
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

APP: Final = "longyard"
SCHEDULE: Final = "longyard.schedule"
LAUNCH: Final = "longyard.launch"
SWEEP: Final = "longyard.sweep"
QUEUE: Final = "longyard"

RETRY_S: Final = 1.0


def queue_of(host: str) -> str:
    return f"host.{host}"


def app(redis_url: str) -> Celery:
    """JSON only, early acks, no results, no remote control, nothing shared but the queues."""
    celery = Celery(APP, broker=_kombu_url(redis_url), set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A sender learns at once that the broker is away; the consumer reconnects by its own settings above.
        broker_transport_options={
            "max_retries": 0,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 1.0,
            "health_check_interval": 10,
        },
        task_default_queue=QUEUE,
        task_publish_retry=False,
    )
    return celery


class Sender:
    """Sends hints, and stays silent for a second after a failure. Safe from several threads."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._lock = threading.Lock()
        self._silent_until = 0.0

    def schedule(self) -> bool:
        return self._send(SCHEDULE, queue=QUEUE)

    def launch(self, host: str, attempt_id: str) -> bool:
        return self._send(LAUNCH, attempt_id, queue=queue_of(host))

    def sweep(self) -> bool:
        return self._send(SWEEP, queue=QUEUE)

    def _send(self, task: str, *args: str, queue: str) -> bool:
        if time.monotonic() < self._silent_until:
            return False
        try:
            with self._lock:
                self._celery.send_task(task, args=args, queue=queue, ignore_result=True)
        except (OperationalError, RedisError, OSError):
            self._silent_until = time.monotonic() + RETRY_S
            return False
        return True


def _kombu_url(redis_url: str) -> str:
    if redis_url.startswith("unix://"):
        return "redis+socket://" + redis_url.removeprefix("unix://")
    return redis_url
