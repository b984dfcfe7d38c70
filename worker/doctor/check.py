"""Owns what the doctor's checks look at: this host by its files, its environment, its packages and its cards. Facts, no verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.settings import Settings
from worker.devices.report import Report


@dataclass(frozen=True)
class Site:
    """`root` is where its file system starts, `site_packages` where its Python packages lie, `machine` as uname says it.

    `refusal`: why it is not known which devices it has; then `device_type` is ''. `report`: what the vendor's tool told just now;
    `held`: the devices that attempts have now. `clock_ahead_s`: by how much its clock is ahead of the database's; None where that is
    the same clock, or does not answer.
    """

    settings: Settings
    root: Path
    environ: Mapping[str, str]
    machine: str
    site_packages: Path
    packages: Mapping[str, str]
    device_type: str
    num_devices: int
    is_simulated: bool
    report: Report | None = None
    refusal: str | None = None
    clock_ahead_s: float | None = None
    held: frozenset[int] = frozenset()

    @property
    def is_ascend(self) -> bool:
        """With real cards: a simulated host's ranks run on the CPU, and need nothing of Ascend."""
        return self.device_type == "npu" and not self.is_simulated
