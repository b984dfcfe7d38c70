"""Hosts and their devices: register, hold, free, doubt. The only writer of a host's status and a device's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from store.db import now
from store.errors import NotFound, PlacementConflict
from store.models import Attempt, Device, Host, Job
from store.placement.types import HostCapacity
from store.states import DeviceState, HostStatus

IN_SERVICE: Final = frozenset({DeviceState.FREE, DeviceState.HELD})
"""A device in another state, or a cordoned one, is given to nobody."""

UNSEEN: Final = "was freed a moment ago, and its host has not looked at it since"
"""The `unfit_reason` of a card between the end of its last process, as we saw it, and a look at the card itself."""

_ANY: Final = select(Host.name).limit(1)
_DEVICES: Final = (
    select(Device, Attempt.job_id, Job.owner, Attempt.number)
    .outerjoin(Attempt, Attempt.id == Device.attempt_id)
    .outerjoin(Job, Job.id == Attempt.job_id)
    .order_by(Device.host, Device.index)
)


@dataclass(frozen=True)
class DeviceView:
    """A device and who holds it: job, its owner and the attempt's number are None where nobody does."""

    device: Device
    job_id: str | None
    owner: str | None
    attempt_number: int | None


@dataclass(frozen=True)
class HostView:
    host: Host
    devices: Sequence[DeviceView]

    @property
    def capacity(self) -> HostCapacity:
        slots = [
            Slot(one.device.index, one.device.state, one.device.cordoned_at, one.device.unfit_reason)
            for one in self.devices
        ]
        is_drained = self.host.drained_at is not None
        return capacity(self.host.name, self.host.device_type, slots, is_drained=is_drained)

    @property
    def status(self) -> HostStatus:
        """As people see it: a host that is drained is draining, though its worker would take more."""
        is_drained = self.host.drained_at is not None and self.host.status is HostStatus.ONLINE
        return HostStatus.DRAINING if is_drained else self.host.status


class Slot(NamedTuple):
    """What decides whether a device may be given out."""

    number: int
    state: DeviceState
    cordoned_at: datetime | None
    unfit_reason: str | None


def capacity(name: str, device_type: str, devices: Sequence[Slot], *, is_drained: bool = False) -> HostCapacity:
    """What the planner sees of a host with these devices. A simulated NPU host has `npu` devices."""
    usable = [one for one in devices if one.state in IN_SERVICE and one.cordoned_at is None and not is_drained]
    usable = [one for one in usable if one.unfit_reason in (None, UNSEEN)]
    return HostCapacity(
        name=name,
        serves=frozenset([device_type]),
        free=tuple(one.number for one in usable if one.state is DeviceState.FREE and one.unfit_reason is None),
        num_devices=len(devices),
        usable=tuple(one.number for one in usable),
        group=group_of(device_type, len(devices)),
        is_drained=is_drained,
    )


def group_of(device_type: str, num_devices: int) -> int:
    """The size of the linked groups of a host's devices, 0 where all are alike.

    Eight Ascend devices are two HCCS rings of four, and processes of one job in two rings may not reach each other:
    https://www.hiascend.com/document/detail/en/mindcluster/730/clustersched/schedulingug/dl_affinity_0011.html
    """
    return 4 if device_type == "npu" and num_devices == 8 else 0


def register(
    session: Session,
    name: str,
    *,
    device_type: str,
    device_names: Sequence[str],
    boot_id: str,
    versions: Mapping[str, str],
    simulated: bool = False,
) -> Host:
    """A worker has started on this host: online, with these devices.

    Devices in use keep their holder; ones that went away stay until they are free.
    """
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        host = Host(name=name, registered_at=now(), beat=0)
        session.add(host)
    host.status, host.device_type, host.simulated = HostStatus.ONLINE, device_type, simulated
    host.boot_id, host.versions, host.last_seen_at = boot_id, dict(versions), now()
    host.beat += 1
    session.flush()
    known = {device.index: device for device in _devices(session, name)}
    for index, device_name in enumerate(device_names):
        device = known.pop(index, None)
        if device is None:
            session.add(Device(host=name, index=index, name=device_name, state=DeviceState.FREE))
        else:
            device.name = device_name
    for device in known.values():
        if device.state is DeviceState.FREE:
            session.delete(device)
    session.flush()
    return host


def beat(session: Session, name: str) -> Host:
    """The host's loop is alive. One that was called lost is online again. Raises NotFound."""
    host = get(session, name)
    host.beat += 1
    host.last_seen_at = now()
    if host.status is HostStatus.LOST:
        host.status = HostStatus.ONLINE
    return host


def get(session: Session, name: str) -> Host:
    """Raises NotFound."""
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        raise NotFound(f"no such host: {name}")
    return host


def leave(session: Session, name: str) -> Host:
    """Its worker shuts down: nothing new is placed there until one registers again."""
    host = get(session, name)
    host.status = HostStatus.DRAINING
    return host


def drain(session: Session, name: str) -> Host:
    """Nothing new is placed there, whatever its worker does, until that is taken back; what runs goes on. Again is no error."""
    host = get(session, name)
    host.drained_at = host.drained_at or now()
    return host


def undrain(session: Session, name: str) -> Host:
    """It takes jobs again, as far as its worker does."""
    host = get(session, name)
    host.drained_at = None
    return host


def cordon(session: Session, name: str, index: int) -> Device:
    """The device is given to nobody once it is free; what runs on it goes on. Raises NotFound. Again is no error."""
    device = _device(session, name, index)
    device.cordoned_at = device.cordoned_at or now()
    return device


def uncordon(session: Session, name: str, index: int) -> Device:
    """It is given out again once it is free."""
    device = _device(session, name, index)
    device.cordoned_at = None
    return device


def lose(session: Session, name: str) -> Host:
    """The judge saw its beat stand still for the lease's length."""
    host = get(session, name)
    host.status = HostStatus.LOST
    return host


def any_registered(session: Session) -> bool:
    return session.scalars(_ANY).first() is not None


def all_hosts(session: Session) -> list[HostView]:
    """Every host with its devices and their holders, by name; two queries."""
    hosts = session.scalars(select(Host).order_by(Host.name)).all()
    devices: dict[str, list[DeviceView]] = {host.name: [] for host in hosts}
    for one in _views(session, _DEVICES):
        # PostgreSQL's second look may see a host that has registered since the first.
        if one.device.host in devices:
            devices[one.device.host].append(one)
    return [HostView(host, devices[host.name]) for host in hosts]


def view(session: Session, name: str) -> HostView:
    """One host with its devices and their holders. Raises NotFound."""
    host = session.get(Host, name)
    if host is None:
        raise NotFound(f"no such host: {name}")
    return HostView(host, _views(session, _DEVICES.where(Device.host == name)))


def hold(session: Session, name: str, *, device_indices: Sequence[int], attempt_id: str) -> None:
    """Give free devices to an attempt, all or none. Raises PlacementConflict."""
    wanted = set(device_indices)
    devices = [device for device in _devices(session, name) if device.index in wanted]
    taken = [one.index for one in devices if one.state is not DeviceState.FREE or one.cordoned_at or one.unfit_reason]
    if taken or len(devices) != len(device_indices):
        raise PlacementConflict(f"host {name}: devices {sorted(taken) or sorted(wanted)} are not free")
    for device in devices:
        device.state, device.attempt_id = DeviceState.HELD, attempt_id


def free(session: Session, attempt_id: str) -> None:
    """No process of the attempt is left on its devices. Where their host can see the cards themselves, it has to look first."""
    for device in _held_by(session, attempt_id):
        device.state, device.attempt_id = DeviceState.FREE, None
        if device.health is not None and device.unfit_reason is None:
            device.unfit_reason = UNSEEN


def doubt(session: Session, attempt_id: str) -> None:
    """The attempt was closed by somebody who could not look: unverified until their host has."""
    for device in _held_by(session, attempt_id):
        device.state = DeviceState.UNVERIFIED


def quarantine(session: Session, attempt_id: str) -> None:
    """A process of the attempt cannot be ended: its devices stay out of use until it is gone."""
    for device in _held_by(session, attempt_id):
        device.state = DeviceState.QUARANTINED


def in_doubt(session: Session, name: str, state: DeviceState) -> Sequence[str]:
    """The closed attempts whose devices on this host are unverified, or quarantined, by id: their host has to look."""
    return session.scalars(
        select(Device.attempt_id)
        .where(Device.host == name, Device.state == state, Device.attempt_id.is_not(None))
        .distinct()
    ).all()  # pyright: ignore[reportReturnType]  # the column is nullable, the query leaves the nulls out


def _views(session: Session, devices: Select[Device, str, str, int]) -> list[DeviceView]:
    return [DeviceView(*row) for row in session.execute(devices).all()]


def _device(session: Session, name: str, index: int) -> Device:
    device = session.get(Device, (name, index), with_for_update=True)
    if device is None:
        get(session, name)
        raise NotFound(f"host {name} has no device {index}")
    return device


def _devices(session: Session, name: str) -> Sequence[Device]:
    return session.scalars(select(Device).where(Device.host == name).order_by(Device.index).with_for_update()).all()


def _held_by(session: Session, attempt_id: str) -> Sequence[Device]:
    return session.scalars(
        select(Device).where(Device.attempt_id == attempt_id).order_by(Device.index).with_for_update()
    ).all()
