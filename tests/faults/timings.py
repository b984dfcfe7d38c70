"""How long things take: the timings of a plane under test, and waiting for what was promised."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from store.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Timings:
    """Every timing of a plane at `scale` times its default. `patience_s` is what a busy machine may add to a stated time."""

    scale: float
    patience_s: float

    @property
    def settings(self) -> dict[str, float]:
        names = ("heartbeat_s", "lease_s", "stop_grace_s", "sibling_grace_s", "quarantine_s", "host_loop_s", "retry_s")
        return {name: Settings.model_fields[name].default * self.scale for name in names}

    def within(self, stated_s: float) -> float:
        """How long to wait for what is stated for the default timings."""
        return stated_s * self.scale + self.patience_s


QUICK = Timings(1 / 20, patience_s=30.0)
FULL = Timings(1.0, patience_s=5.0)


class NotInTime(AssertionError):
    pass


def until(condition: Callable[[], T | None], what: str, *, within_s: float) -> T:
    """Wait until the condition answers something true, and answer that."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {within_s:.1f} s: {what}")
        time.sleep(0.01)
    return answer
