"""What goes wrong inside the processes of a plane under test. Python imports this at start; a file beside it, named for a fault, switches.

Standard library only: it runs before anything of ours, in every process of the plane.
"""

from __future__ import annotations

import pathlib
from pathlib import Path

SWITCHES = Path(__file__).parent
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_read_text = pathlib.Path.read_text


def switched(name: str) -> str | None:
    """What the switch's file says, now; None while there is none."""
    try:
        return _read_text(SWITCHES / name, "utf-8")
    except FileNotFoundError:
        return None


def read_text(self, *args, **kwargs):
    """F22: another boot id."""
    return (switched("boot_id") if self == BOOT_ID else None) or _read_text(self, *args, **kwargs)


pathlib.Path.read_text = read_text
