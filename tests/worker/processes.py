"""Whether a process runs, as the tests ask it."""

from __future__ import annotations

import psutil


def is_running(pid: int) -> bool:
    """A zombie whose parent has not looked yet has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
