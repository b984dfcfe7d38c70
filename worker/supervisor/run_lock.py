"""Owns the lock that a living supervisor holds on its run directory. A free lock means it is dead: nobody guesses by pid.

The file says who has it: a pid and, of a supervisor, the name of its host.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

FILE: Final = "supervisor.lock"
MAX_BYTES: Final = 128


class RunLock:
    """Holds the lock for a `with` block, if it can be had within `patience_s`: see `is_held`. The file is never removed.

    `host` is whose supervisor this is; whoever only cleans up has none.
    """

    def __init__(self, run_dir: Path, *, host: str = "", patience_s: float = 0.0) -> None:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.is_held = _lock(self._fd, patience_s)
        if self.is_held:
            os.ftruncate(self._fd, 0)
            # On a full disk it is held all the same; only nobody can tell by whom.
            with suppress(OSError):
                os.pwrite(self._fd, f"{os.getpid()} {host}".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(run_dir: Path) -> int | None:
    """The pid of whoever holds the lock, or None where it is free. A moment is enough to be wrong: take the lock to be sure."""
    found = _holder(run_dir)
    return None if found is None else found[0]


def signal_supervisor(run_dir: Path, signum: signal.Signals, *, host: str) -> None:
    """To the supervisor that holds the lock, if it is this host's; never to another process that has got its pid meanwhile."""
    found = _holder(run_dir)
    if found is None or found[1] != host:
        return
    try:
        descriptor = os.pidfd_open(found[0])
    except ProcessLookupError:
        return
    try:
        # It held the lock before and after: so the descriptor, which came between, is of the process that wrote the pid.
        if _holder(run_dir) == found:
            signal.pidfd_send_signal(descriptor, signum)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _holder(run_dir: Path) -> tuple[int, str] | None:
    try:
        descriptor = os.open(run_dir / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _lock(descriptor, 0.0):
            return None
        pid, _, host = os.pread(descriptor, MAX_BYTES, 0).decode("ascii", "replace").partition(" ")
        return (int(pid), host) if pid.isdigit() else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
