"""Owns the checks of what every job on this host shares: ports, shared memory, open files, disk, clock, data roots, the trainer."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.devices.ascend import FIRST_PORT, PORTS_A_DEVICE
from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level

GIB: Final = 1 << 30
SHM: Final = "dev/shm"
SHM_WANTED_BYTES: Final = GIB
SHM_LEAST_BYTES: Final = 8 << 20
FILES_WANTED: Final = 4096
FILES_LEAST: Final = 256
BASE_CHECKPOINT_BYTES: Final = 148_659_456 * 3 * 4
"""longformer-base-4096 and its two moments in float32."""

DISK_LEAST_BYTES: Final = 256 << 20
SKEW_S: Final = 2.0
_LISTENS: Final = "0A"


def check_ports(site: Site) -> Iterator[Finding]:
    """Ranks meet on the loopback; HCCL takes a range a card, which nobody else may hold."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        why = "the ranks of a job talk to each other there"
        fix = "ip link set lo up, and see `ss -s` for who holds so many ports"
        yield Finding(
            "ports", Level.FAILURE, f"no port of 127.0.0.1 can be had ({error.strerror})", why, fix, dooms_jobs=True
        )
    if not site.is_ascend:
        return
    taken = _listening(site.root)
    for device in range(site.num_devices):
        wanted = range(FIRST_PORT + PORTS_A_DEVICE * device, FIRST_PORT + PORTS_A_DEVICE * (device + 1))
        others = sorted(set(wanted) & taken)
        if others:
            is_full = len(others) == len(wanted)
            yield Finding(
                "ports",
                Level.FAILURE if is_full else Level.WARNING,
                f"of the ports {wanted[0]}-{wanted[-1]} of card {device} others hold {', '.join(map(str, others))}",
                "HCCL listens on them when a job has that card",
                f"see who it is: ss -ltnp 'sport >= {wanted[0]} and sport <= {wanted[-1]}'",
                dooms_jobs=is_full,
                devices=(device,),
            )
    yield from _check_ephemeral(site)


def check_shared_memory(site: Site) -> Iterator[Finding]:
    """Loader processes hand batches over in /dev/shm; a container has 64 MiB of it by default."""
    usage = shutil.disk_usage(site.root / SHM)
    if usage.free < SHM_WANTED_BYTES:
        is_full = usage.free < SHM_LEAST_BYTES
        yield Finding(
            "shared memory",
            Level.FAILURE if is_full else Level.WARNING,
            f"/{SHM} has {_size(usage.free)} left of {_size(usage.total)}",
            "loader processes (dataloader_num_workers) pass batches through it, and die by SIGBUS when it is full",
            "mount -o remount,size=16G /dev/shm; for a container: docker run --shm-size=16g",
        )


def check_open_files(_site: Site) -> Iterator[Finding]:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        yield Finding(
            "open files",
            Level.FAILURE if soft < FILES_LEAST else Level.WARNING,
            f"a process may open {soft} files",
            "8 ranks with loader processes open thousands: Too many open files",
            "ulimit -n 65536 before the worker starts; under systemd: LimitNOFILE=65536",
            dooms_jobs=soft < FILES_LEAST,
        )


def check_disk(site: Site) -> Iterator[Finding]:
    """Room for the checkpoints to come: a new one is whole before the oldest goes."""
    data_dir = site.settings.data_dir
    # Before the first start it is not there yet.
    place = next(one for one in (data_dir, *data_dir.parents) if one.exists())
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        why, fix = (
            "everything a job writes goes there",
            f"chown this user's, or correct LONGYARD_DATA_DIR: ls -ld {place}",
        )
        yield Finding("disk", Level.FAILURE, f"this user may not write in {place}", why, fix, dooms_jobs=True)
        return
    free = shutil.disk_usage(place).free
    if free < 3 * BASE_CHECKPOINT_BYTES:
        is_full = free < DISK_LEAST_BYTES
        yield Finding(
            "disk",
            Level.FAILURE if is_full else Level.WARNING,
            f"{site.settings.data_dir} has {_size(free)} left",
            f"a checkpoint of longformer-base takes {_size(BASE_CHECKPOINT_BYTES)}, and a job keeps two while it writes the third",
            f"delete old jobs (DELETE /jobs/…), or move LONGYARD_DATA_DIR; see: du -sh {site.settings.jobs_dir}/*",
            dooms_jobs=is_full,
        )


def check_clock(site: Site) -> Iterator[Finding]:
    ahead_s = site.clock_ahead_s
    if ahead_s is not None and abs(ahead_s) > SKEW_S:
        yield Finding(
            "clock",
            Level.WARNING,
            f"this host's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's",
            "times on charts and in timelines are wrong by that much; nothing is decided by them",
            "timedatectl set-ntp true, or: chronyc makestep",
        )


def check_data_roots(site: Site) -> Iterator[Finding]:
    """Jobs may name files below them only; what this host cannot read there fails at its launch."""
    for root in site.settings.data_roots:
        words = _say_unreadable(root)
        if words is not None:
            yield Finding(
                "data roots",
                Level.FAILURE,
                f"{root} {words}",
                "a job that names a file there fails when it is placed on this host",
                f"mount it here, or let this user in: chmod -R o+rX {root}; or take it out of LONGYARD_DATA_ROOTS",
            )


def check_trainer(site: Site) -> Iterator[Finding]:
    module = site.settings.trainer_module
    try:
        is_here = importlib.util.find_spec(module) is not None
    except ImportError:
        is_here = False
    if not is_here:
        why, fix = (
            "every rank is `python -m` of it",
            "install longyard on this host, or correct LONGYARD_TRAINER_MODULE",
        )
        yield Finding("trainer", Level.FAILURE, f"there is no Python module {module}", why, fix, dooms_jobs=True)


def _check_ephemeral(site: Site) -> Iterator[Finding]:
    """The kernel gives outgoing connections ports of its own choice, HCCL's among them unless they are reserved."""
    last = FIRST_PORT + PORTS_A_DEVICE * site.num_devices - 1
    try:
        low, high = map(int, (site.root / "proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
        reserved = (site.root / "proc/sys/net/ipv4/ip_local_reserved_ports").read_text("ascii").strip()
    except (OSError, ValueError):
        return
    kept = {port for part in filter(None, reserved.split(",")) for port in _range(part)}
    at_risk = [port for port in range(max(low, FIRST_PORT), min(high, last) + 1) if port not in kept]
    if at_risk:
        yield Finding(
            "ports",
            Level.WARNING,
            f"outgoing connections may be given ports {at_risk[0]}-{at_risk[-1]}, which HCCL listens on",
            "a job whose port is taken when it starts fails with EI0006, or waits",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={FIRST_PORT}-{last}",
        )


def _range(part: str) -> range:
    low, _, high = part.partition("-")
    return range(int(low), int(high or low) + 1)


def _listening(root: Path) -> set[int]:
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / "proc/net" / name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        cells = (line.split() for line in lines)
        found |= {int(cell[1].rpartition(":")[2], 16) for cell in cells if len(cell) > 3 and cell[3] == _LISTENS}
    return found


def _say_unreadable(root: Path) -> str | None:
    if not root.exists():
        return "does not exist on this host"
    if not root.is_dir():
        return "is not a directory"
    return None if os.access(root, os.R_OK | os.X_OK) else "cannot be read by this user"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes >> 20} MiB"
