"""Owns a wake-up for a thread that waits in select: given by other threads, and by the kernel's signals."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import suppress


class Wake:
    """A pipe that is readable once somebody called `wake`. `fd_for_signals` goes into signal.set_wakeup_fd."""

    def __init__(self) -> None:
        self._reader, self.fd_for_signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(self) -> None:
        # A full pipe wakes as well as one more byte would.
        with suppress(BlockingIOError):
            os.write(self.fd_for_signals, b"\0")

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> None:
        """Until woken, until one of the descriptors `also` is readable, or until the time is over."""
        poll = select.poll()
        for fd in (self._reader, *also):
            poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, timeout_s) * 1000)
        with suppress(BlockingIOError):
            os.read(self._reader, 65536)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.fd_for_signals)
