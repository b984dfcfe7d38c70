"""Wake-ups after a commit, from a thread of their own: a broker that hangs delays nobody's answer."""

from __future__ import annotations

import threading

import structlog

from store import celery_app
from store.pubsub import Notifier

MAX_PENDING = 10_000
GATHER_S = 0.02
"""The first hint goes at once; those that come so soon after it go together: a burst of submissions needs one look. No intent waits."""

log = structlog.get_logger("api.publisher")


class Hints:
    """Tells the workers and the other replicas to look. What is lost here costs them a poll, nothing else."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._changed: dict[str, bool] = {}
        self._hosts: set[str] = set()
        self._schedule = False
        self._closing = False

    def submitted(self, job_id: str) -> None:
        self._add(job_id, schedule=True)

    def asked(self, job_id: str) -> None:
        """Its intent or its place in the queue has changed."""
        self._add(job_id, intent=True, schedule=True)

    def host_changed(self, name: str) -> None:
        """It takes more, or less, than before."""
        self._add(name, schedule=True, is_host=True)

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _add(self, name: str, *, intent: bool = False, schedule: bool = False, is_host: bool = False) -> None:
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hints", daemon=True)
                self._thread.start()
            if is_host:
                self._hosts.add(name)
            elif len(self._changed) < MAX_PENDING:
                self._changed[name] = self._changed.get(name, False) or intent
            self._schedule = self._schedule or schedule
            self._wake.notify()

    def _run(self) -> None:
        notifier, sender = Notifier(self._redis_url), celery_app.Sender(celery_app.app(self._redis_url))
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._schedule or self._closing)
                changed, changed_hosts, schedule = self._changed, self._hosts, self._schedule
                self._changed, self._hosts, self._schedule = {}, set(), False
                if self._closing and not changed and not schedule:
                    break
            try:
                if schedule:
                    sender.schedule()
                for job_id, intent in changed.items():
                    if intent:
                        notifier.publish_intent(job_id)
                    notifier.publish_job(job_id)
                for name in changed_hosts:
                    notifier.publish_host(name)
            except Exception:  # the thread's edge: a hint that fails must not end the next ones
                log.exception("a wake-up could not be sent")
            with self._wake:
                self._wake.wait_for(lambda: self._closing or any(self._changed.values()), timeout=GATHER_S)
        notifier.close()
