"""The faults that the loop chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.faults import kills, outages, wishes
from tests.faults.scene import Strike


@dataclass(frozen=True)
class Fault:
    """Its number in the list of faults; `only` is the database that it can be done to."""

    number: str
    strike: Strike
    only: str = ""


_FAULTS: Final = (
    Fault("F1", kills.kill_worker),
    Fault("F1", kills.kill_launcher),
    Fault("F2", kills.kill_supervisor),
    Fault("F3 F4", kills.kill_rank),
    Fault("F2 F3", kills.kill_everything_of_an_attempt),
    Fault("F5", outages.kill_api),
    Fault("F5", outages.stop_api),
    Fault("F6", outages.kill_broker),
    Fault("F7", outages.empty_broker),
    Fault("F8", outages.reset_broker),
    Fault("F8", outages.freeze_broker),
    Fault("F9", outages.lock_database, only="sqlite"),
    Fault("F9", outages.lock_tables, only="postgres"),
    Fault("F9", outages.cut_database, only="postgres"),
    Fault("F10", outages.lose_answers, only="postgres"),
    Fault("F11", outages.cut_host, only="postgres"),
    Fault("F12", kills.freeze_supervisor),
    Fault("F12", kills.freeze_worker),
    Fault("F12", kills.freeze_api),
    Fault("F12", kills.freeze_rank),
    Fault("F13", kills.lose_launch),
    Fault("F14", outages.storm),
    Fault("F15", outages.jump_clock, only="sqlite"),
    Fault("F18", kills.spoil_checkpoint),
    Fault("F19", wishes.cancel),
    Fault("F19", wishes.cancel_and_retry),
    Fault("F22", kills.reboot),
    Fault("F27", kills.hang_rank),
    Fault("F34", kills.drain_and_return),
    Fault("F36", wishes.pause_and_resume),
    Fault("F36", wishes.preempt),
    Fault("F1 F5 F6", kills.kill_all),
)

MENU: Final = {fault.strike.__name__: fault for fault in _FAULTS}


def for_database(kind: str) -> list[str]:
    """Names of the faults that a plane on `sqlite` or `postgres` can be done."""
    return sorted(name for name, fault in MENU.items() if fault.only in ("", kind))
