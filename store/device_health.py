"""What a host saw of its devices: readings, fitness, faults. Their state and their holder are `store/hosts.py`'s."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import events
from store.db import now
from store.hosts import UNSEEN
from store.models import Attempt, Device, Job
from store.states import DeviceState


@dataclass(frozen=True)
class Reading:
    """One device as its host sees it; None where nothing is known. `utilization` is in percent.

    `ailment`: why it must not be given out, whoever holds it. `residue`: what of others is on it, which counts while nobody holds it.
    """

    index: int
    health: str | None = None
    temperature_c: float | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    ailment: str | None = None
    residue: str | None = None


def unseen(session: Session, host: str) -> Sequence[int]:
    """The devices that wait for a look since their last holder left."""
    return session.scalars(select(Device.index).where(Device.host == host, Device.unfit_reason == UNSEEN)).all()


def observe(session: Session, host: str, readings: Sequence[Reading], *, seen: Collection[int]) -> bool:
    """Store what was read. Answers whether a device became fit or unfit.

    `seen`: the devices of `unseen` that the look was taken after; others may have been in use when it was, and go on waiting, unless
    their host cannot look at them any more.
    """
    by_index = {one.index: one for one in readings}
    rows = session.scalars(select(Device).where(Device.host == host).order_by(Device.index).with_for_update())
    is_news = False
    for device in rows:
        reading = by_index.get(device.index)
        if reading is None:
            continue
        device.health, device.temperature_c, device.utilization = (
            reading.health,
            reading.temperature_c,
            reading.utilization,
        )
        device.memory_used_bytes, device.memory_total_bytes = reading.memory_used_bytes, reading.memory_total_bytes
        if device.unfit_reason == UNSEEN and device.index not in seen and reading.health is not None:
            continue
        reason = reading.ailment or (reading.residue if device.state is DeviceState.FREE else None)
        is_news = is_news or (reason is None) != (device.unfit_reason is None)
        device.unfit_reason = reason
    return is_news


def cordon_broken(session: Session, job: Job, attempt: Attempt, *, index: int, why: str) -> None:
    """A fault of this device ended the attempt: it gets no further work until a person has looked. Told as an event of the job."""
    device = session.get(Device, (attempt.host, index), with_for_update=True)
    if device is None or device.cordoned_at is not None:
        return
    device.cordoned_at = now()
    events.append(
        session, job, kind="device_cordoned", attempt=attempt.number, host=attempt.host, device=index, why=why
    )
