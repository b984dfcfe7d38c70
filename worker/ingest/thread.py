"""Owns the threads of a supervisor that keep its attempt's rows: one writes them, one listens for wake-ups. They touch no process."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis

from linux.inotify import Watch
from store.errors import LeaseLost
from store.pubsub import Notifier, channel_intent
from store.settings import Settings
from worker.ingest.writer import Ledger
from worker.supervisor.exit_reason import Verdict

BATCH_S: Final = 0.25
"""At most this long a line waits for its commit; after a quiet spell it waits for nothing."""
NOISE_S: Final = 0.01
"""Files grow in ways that are no news: half a line, an error file. They are looked at no more often than this."""
POLL_S: Final = 1.0
RETRY_S: Final = 0.5
LISTEN_S: Final = 60.0

log = logging.getLogger(__name__)


class Scribe:
    """From `start` until the attempt is closed or its lease is lost. What the threads share are plain attributes, each with one writer.

    `tell` is called when the ledger's intent has changed, and when the lease is lost.
    """

    def __init__(
        self,
        settings: Settings,
        job_id: str,
        *,
        ledger: Ledger,
        watch: Watch,
        notifier: Notifier,
        tell: Callable[[], None],
    ) -> None:
        self._settings, self._job_id = settings, job_id
        self._ledger, self._watch, self._notifier, self._tell = ledger, watch, notifier, tell
        self._writer = threading.Thread(target=self._run, name="rows", daemon=True)
        self._verdict: Verdict | None = None
        self._is_clean = True
        self._is_listening = False
        self._should_look = False
        self._next_look = 0.0
        self.is_lost = False

    def start(self) -> None:
        self._writer.start()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def note(self, kind: str, **data: Any) -> None:
        """Have an event told at once."""
        self._ledger.note(kind, **data)
        self._watch.wake()

    def finish(self, verdict: Verdict, *, is_clean: bool) -> None:
        """The ranks are gone, `is_clean` or not: drain their files and close. Returns when that is done, however long it takes."""
        self._is_clean = is_clean
        self._verdict = verdict
        self._watch.wake()
        self._writer.join()

    def _run(self) -> None:
        """Renew, commit what is new, close. Whatever the database does, it is tried again."""
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
                self.is_lost = True
                self._tell()
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
            has_grown |= self._ledger.has_notes
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
            self._notifier.publish_job(self._job_id)
            if not news.more:
                break
            news = self._ledger.commit(renew=False)
        self._next_look = time.monotonic() + pause_s
        if self._ledger.intent is not before:
            self._tell()
        return is_renewed

    def _close(self, verdict: Verdict) -> None:
        closing = self._ledger.close(verdict, devices_clean=self._is_clean, is_stuck=not self._is_clean)
        log.info("closed: %s, the job is %s", verdict.reason.value, closing.job_status.value)
        self._notifier.publish_job(self._job_id)
        self._notifier.publish_host(self._settings.host_name)

    def _look_at_intent(self) -> None:
        self._should_look = False
        before = self._ledger.intent
        self._ledger.look_at_intent()
        if self._ledger.intent is not before:
            self._tell()

    def _listen(self) -> None:
        """In a thread of its own: a wake-up makes the other one look at once. While nothing can be heard, that one polls."""
        while self._verdict is None:
            try:
                with self._notifier.subscribed(channel_intent(self._job_id)) as pubsub:
                    # The subscription's confirmation: from here on nothing is missed.
                    pubsub.get_message(timeout=RETRY_S)
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
