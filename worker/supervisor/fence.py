"""Owns how long a supervisor may act without renewing its lease.

It stops before anybody may think it dead: others may start the job again then. Not so where the database is the file in the data
directory: every judge lives on this machine then and sees the lock that a living supervisor holds. It closes nothing before that lock is
free and no process is left, so a database that is away for all cannot take an attempt from who still works on it.
"""

from __future__ import annotations

import math
from typing import Final

from store.settings import Settings

TERM_SHARE: Final = 35 / 60
KILL_SHARE: Final = 45 / 60
"""Shares of the lease without a renewal after which the ranks get SIGTERM and SIGKILL; all is over well before it ends."""


def stops_at(settings: Settings, renewed_at: float) -> float:
    """The boot time from which the ranks are asked to save and leave; infinite where no renewal is needed."""
    return math.inf if settings.is_local else renewed_at + TERM_SHARE * settings.lease_s


def kills_at(settings: Settings, renewed_at: float) -> float:
    """The boot time from which there is no more asking."""
    return math.inf if settings.is_local else renewed_at + KILL_SHARE * settings.lease_s
