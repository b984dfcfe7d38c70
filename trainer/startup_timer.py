"""Owns where the time goes between a process's start and its first step. Must not import torch, whose import it times."""

import os
import time
from pathlib import Path


class StartUp:
    """A stopwatch that has run since the kernel started this process."""

    def __init__(self) -> None:
        self._last = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._parts = {"process": max(0.0, self._last - _process_start())}

    def passed(self, part: str) -> None:
        """Counts the time since the last call as spent on `part`; the same part may come again."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def parts(self) -> dict[str, float]:
        """Seconds by part, in the order they came. Their sum is the time since the process's start."""
        return {name: round(seconds, 4) for name, seconds in self._parts.items()}


def _process_start() -> float:
    """When this process was started, on CLOCK_BOOTTIME, to the kernel's tick of mostly 10 ms."""
    # The program's name stands in parentheses and may hold any character, parentheses too.
    after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")
