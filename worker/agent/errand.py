"""Owns work that takes its time and may not keep the host loop waiting: a thread that repeats it, and the answer to be fetched."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Errand(Generic[T]):
    """`work` every `every_s`, first at once; `tell` is called, in its thread, whenever there is an answer to `take`.

    The thread ends with the process, whatever it waits for.
    """

    def __init__(self, name: str, work: Callable[[], T | None], *, every_s: float, tell: Callable[[], None]) -> None:
        self._work, self._every_s, self._tell = work, every_s, tell
        self._answers: deque[T] = deque(maxlen=1)
        self._is_hurried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Do it now, or once more when it is being done."""
        self._is_hurried.set()

    def take(self) -> T | None:
        """The newest answer, once."""
        try:
            return self._answers.pop()
        except IndexError:
            return None

    def _run(self) -> None:
        while True:
            self._is_hurried.clear()
            try:
                answer = self._work()
            except Exception:  # the thread's edge: what fails once is tried again
                log.exception("%s failed", self._thread.name)
                answer = None
            if answer is not None:
                self._answers.append(answer)
                self._tell()
            self._is_hurried.wait(self._every_s)
