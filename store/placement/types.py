"""What a planning pass is given and what it answers. Times are seconds from now, by nobody's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ANY: Final = "any"
"""The device type of a job that runs on whatever there is."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices kept for a blocked job. Within a `level` of priority, what was promised later (a greater `number`) never delays it."""

    level: int
    number: int
    host: str
    device_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """`at_most_s` is its time limit: it may fill a gap before a reservation that is as long. `expected_s` is what such jobs took so far:
    it serves estimates, never a promise to others."""

    id: str
    num_devices: int
    device_type: str
    owner: str = ""
    priority: int = 0
    waited_s: float = 0.0
    at_most_s: float | None = None
    expected_s: float | None = None
    reservation: Reservation | None = None

    @property
    def length_s(self) -> float:
        """How long it is expected to hold its devices; infinite where nothing is known."""
        known = [value for value in (self.at_most_s, self.expected_s) if value is not None]
        return min(known, default=float("inf"))


@dataclass(frozen=True, slots=True)
class RunningJob:
    """`left_s` comes from measured progress where there is some; None: nothing is known. `held_s`: for how long it has had its devices."""

    id: str
    host: str
    device_indices: tuple[int, ...]
    owner: str = ""
    priority: int = 0
    left_s: float | None = None
    held_s: float = 0.0
    is_stopping: bool = False


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """One host that takes jobs.

    `serves` are the device types it runs; a simulated NPU host serves `npu`. `usable` are the devices that may be given out once nobody
    holds them; `free` are those of them that nobody holds. `group` is the size of its linked groups of devices, 0 where all are alike.
    One that is drained has none to give, and is given so that those who wait can be told.
    """

    name: str
    serves: frozenset[str]
    free: tuple[int, ...]
    num_devices: int
    usable: tuple[int, ...]
    group: int = 0
    is_drained: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What an owner is due. `used_device_s` is what they had lately, the longer ago the less it counts."""

    weight: float = 1.0
    max_devices: int | None = None
    used_device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    job_id: str
    host: str
    device_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running job that is to checkpoint and go back to the queue, to make room for another."""

    job_id: str
    for_job_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """`position` counts from 1 in the order of planning. Reason and estimate are None for jobs too far back to be told."""

    job_id: str
    position: int
    reason: str | None
    starts_in_s: float | None = None
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    placements: Sequence[Placement]
    preemptions: Sequence[Preemption]
    waits: Sequence[Wait]
