"""Owns the lock that a living supervisor holds on its run directory. A free lock means it is dead: nobody guesses by pid."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

FILE = "supervisor.lock"


class RunLock:
    """Holds the lock for a `with` block, if it can be had within `patience_s`: see `is_held`. The file is never removed."""

    def __init__(self, run_dir: Path, *, patience_s: float = 0.0) -> None:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.is_held = _lock(self._fd, patience_s)
        if self.is_held:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

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
    try:
        descriptor = os.open(run_dir / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _lock(descriptor, 0.0):
            return None
        return int(os.pread(descriptor, 32, 0) or b"0") or None
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
