"""Owns what this host advertises: LONGYARD_DEVICES, or what nvidia-smi or npu-smi shows, and the versions that people ask for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Final

from store.settings import Settings
from worker.devices import toolchain as versions
from worker.devices import vendor_tool
from worker.devices.report import Report
from worker.devices.vendor_tool import ASK_TIMEOUT_S, Silent, Tool

DEFAULT_CPU_SLOTS: Final = 2
MAX_NAME_CHARS: Final = 64


class NoDevices(Exception):
    """This host cannot say what it has; the message is a sentence that names the way out."""


@dataclass(frozen=True)
class Inventory:
    """This host's devices, indexed as the runtime does. `simulated`: NPUs that are CPU processes. `tool`: who tells of them, and `report`
    what it told; None where nobody does."""

    device_type: str
    names: tuple[str, ...]
    versions: dict[str, str]
    simulated: bool = False
    tool: Tool | None = None
    report: Report | None = None

    @property
    def cpu_threads(self) -> int:
        """A rank's share of the cores this process may use."""
        return max(1, len(os.sched_getaffinity(0)) // max(1, len(self.names)))


def survey(settings: Settings, *, within_s: float = ASK_TIMEOUT_S) -> Inventory:
    """What the setting says, or what is found. Raises NoDevices where that cannot be known: it never becomes something else."""
    wanted, _, number = settings.devices.partition(":")
    count = int(number) if number else None
    if wanted == "cpu":
        return _cpu(count or DEFAULT_CPU_SLOTS)
    if wanted == "npu-sim":
        return _told(
            "npu", vendor_tool.simulated(settings, num_cards=count or 1), count, simulated=True, within_s=within_s
        )
    if wanted != "auto":
        tool = vendor_tool.ASCEND if wanted == "npu" else vendor_tool.NVIDIA
        if tool.is_here or count is None:
            return _told(wanted, tool, count, within_s=within_s)
        # A container may have the cards and not the tool: taken at its word, and never looked at.
        return Inventory(wanted, tuple(f"{wanted.upper()} {index}" for index in range(count)), _versions())
    return _found(within_s)


def _found(within_s: float) -> Inventory:
    refusal: NoDevices | None = None
    here = [one for one in (("cuda", vendor_tool.NVIDIA), ("npu", vendor_tool.ASCEND)) if one[1].is_here]
    for device_type, tool in here:
        try:
            return _told(device_type, tool, None, within_s=within_s / len(here))
        except NoDevices as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return _cpu(DEFAULT_CPU_SLOTS)


def _told(device_type: str, tool: Tool, count: int | None, *, within_s: float, simulated: bool = False) -> Inventory:
    way_out = (
        f"mend it, or say what this host offers by LONGYARD_DEVICES, as cpu:{DEFAULT_CPU_SLOTS} for its processor alone"
    )
    try:
        report = tool.ask(within_s=within_s)
    except Silent as error:
        raise NoDevices(f"this host's cards are not known: {error}; {way_out}") from error
    if not report.cards:
        raise NoDevices(f"this host's cards are not known: {tool.name} lists none; {way_out}")
    if count is not None and count > len(report.cards):
        raise NoDevices(
            f"LONGYARD_DEVICES wants {count} cards and {tool.name} lists {len(report.cards)}; ask for no more"
        )
    names = tuple(card.name[:MAX_NAME_CHARS] for card in report.cards)
    return Inventory(device_type, names[:count], _versions(), simulated=simulated, tool=tool, report=report)


def _cpu(count: int) -> Inventory:
    return Inventory("cpu", tuple(f"CPU slot {index}" for index in range(count)), _versions())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()} | versions.packages()
    cann, driver = versions.cann(versions.ROOT, os.environ), versions.driver(versions.ROOT)
    return found | ({"cann": cann} if cann else {}) | ({"driver": driver} if driver else {})
