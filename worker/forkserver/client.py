"""Owns that there is a launcher: starts it, starts another when it ends, with growing pauses, and tells why none can start."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from worker import journal
from worker.forkserver.server import Launcher, Told
from worker.supervisor.startup import Launch

TRIES: Final = 3
"""After so many starts in a row that came to nothing, whoever waits for a supervisor here is told so."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0
START_S: Final = 30.0
"""One that says nothing for so long is ended: an import can hang, on a file system that is away."""

log = logging.getLogger(__name__)


class Standby:
    """The host loop's launcher, whichever process that is at the moment. It writes to `log_path`, anew each time."""

    def __init__(self, log_path: Path) -> None:
        log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_path = log_path
        self._num_failures = 0
        self._is_ready = False
        self._launcher: Launcher | None = None
        self._act_at = 0.0
        self._last_words: str | None = None
        self._start()

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    @property
    def act_at(self) -> float:
        """The monotonic time by which `heard` is to be called again; infinite where the descriptor tells."""
        return float("inf") if self._is_ready else self._act_at

    @property
    def failure(self) -> str | None:
        """Why no launcher starts, in its own last words; None while one may."""
        return None if self._is_ready or self._num_failures < TRIES else self._last_words

    def filenos(self) -> list[int]:
        return [] if self._launcher is None else [self._launcher.fileno()]

    def launch(self, request: Launch) -> bool:
        """False where it cannot be asked now: the host loop does it again."""
        return self._is_ready and self._launcher is not None and self._launcher.launch(request)

    def heard(self) -> list[Told]:
        """Which supervisors have ended since the last call. `lost` among them: the launcher itself, and with it what it was asked."""
        told = [] if self._launcher is None else self._launcher.heard()
        if any(one.kind == "ready" for one in told):
            self._is_ready, self._num_failures = True, 0
        if self._launcher is not None and not self._launcher.is_alive:
            self._bury(self._launcher)
            told.append(Told("lost"))
        elif not self._is_ready and time.monotonic() >= self._act_at:
            if self._launcher is None:
                self._start()
            else:
                self._launcher.kill()
        return [one for one in told if one.kind != "ready"]

    def close(self) -> None:
        if self._launcher is not None:
            self._launcher.close()

    def _start(self) -> None:
        with open(self._log_path, "wb") as output:
            self._launcher = Launcher(stderr=output.fileno())
        self._act_at = time.monotonic() + START_S

    def _bury(self, launcher: Launcher) -> None:
        exit_code = launcher.close()
        self._launcher = None
        words = journal.last_words(self._log_path) or f"it ended with exit code {exit_code} and said nothing"
        log.error("the launcher has ended: %s", words)
        # One that was ready served: another takes its place at once.
        self._num_failures += not self._is_ready
        self._last_words, self._is_ready = words, False
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._num_failures - 1)) if self._num_failures else 0.0
        self._act_at = time.monotonic() + pause_s
        if pause_s == 0.0:
            self._start()
