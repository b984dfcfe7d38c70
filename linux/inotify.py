"""Owns the wake-up when a file in a run directory grows: inotify, and a plain timeout where the system has none left to give."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
from pathlib import Path
from typing import Final

_IN_MODIFY: Final = 0x2
_IN_CREATE: Final = 0x100
_HEADER = struct.Struct("iIII")
POLL_S: Final = 0.25
IGNORED: Final = (".progress", ".tmp", "supervisor.log", "rendezvous")
"""Ranks overwrite their progress at every step: it is read along with other news, and is none by itself."""

log = logging.getLogger(__name__)


class Watch:
    """Waits until a file in `directory` was written or `wake` was called. One thread waits; any thread may wake."""

    def __init__(self, directory: Path) -> None:
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._notify_fd = _inotify(directory)
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        if self._notify_fd is not None:
            self._poll.register(self._notify_fd, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Whether a file may have grown; False where the time is over, or `wake` was called before anything was written."""
        limit_s = timeout_s if self._notify_fd is not None else min(timeout_s, POLL_S)
        ready = {fd for fd, _ in self._poll.poll(max(0.0, limit_s) * 1000)}
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._notify_fd is None:
            return self._wake_fd not in ready
        return self._notify_fd in ready and _has_news(os.read(self._notify_fd, 65536))

    def wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        os.close(self._wake_fd)
        if self._notify_fd is not None:
            os.close(self._notify_fd)


def _inotify(directory: Path) -> int | None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor >= 0:
        if libc.inotify_add_watch(descriptor, os.fsencode(directory), _IN_MODIFY | _IN_CREATE) >= 0:
            return descriptor
        os.close(descriptor)
    log.warning("no inotify (%s): looking every %.2f s", os.strerror(ctypes.get_errno()), POLL_S)
    return None


def _has_news(events: bytes) -> bool:
    position = 0
    while position < len(events):
        length = _HEADER.unpack_from(events, position)[3]
        start = position + _HEADER.size
        name = events[start : start + length].rstrip(b"\0").decode(errors="replace")
        if not name.endswith(IGNORED):
            return True
        position = start + length
    return False
