"""The faults, each a function that does one wrong thing to a plane. Healing is `plane.start()`, unless a function says otherwise."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import text

from store import attempts
from tests.faults.checks import strays
from tests.faults.plane import Plane
from tests.worker.processes import is_running
from worker.forkserver.server import lock_path
from worker.supervisor import run_lock


def kill_worker(plane: Plane, host: str = "a") -> None:
    """The worker; its launcher goes with it, its supervisors do not."""
    launcher = launcher_of(plane, host)
    plane.worker(host).kill()
    plane.until(lambda: not is_running(launcher), "the launcher is gone", stated_s=5)


def kill_launcher(plane: Plane, host: str = "a") -> None:
    """The worker starts another by itself."""
    os.kill(launcher_of(plane, host), signal.SIGKILL)


def kill_supervisor(plane: Plane, job_id: str) -> None:
    os.kill(supervisor_of(plane, job_id), signal.SIGKILL)


def kill_rank(plane: Plane, job_id: str, rank: int = 0) -> None:
    os.kill(ranks_of(plane, job_id)[rank], signal.SIGKILL)


def reboot(plane: Plane, host: str, *, boot_id: str) -> None:
    """What a reboot does to a host: every process of it gone at once, and another boot id afterwards. Starts its worker again."""
    plane.worker(host).kill()
    plane.until(lambda: not _kill_all(plane, host), f"nothing of {host} is left", stated_s=5)
    plane.switch("boot_id", boot_id)
    plane.start()


def _kill_all(plane: Plane, host: str) -> list[int]:
    """Those that are there now; one that forks meanwhile leaves a child, so it is done until there are none."""
    left = processes_of(plane, host)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def restart_broker_empty(plane: Plane) -> None:
    plane.broker.kill()
    for path in sorted((plane.settings.data_dir / "valkey").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    plane.start()


def flush_broker(plane: Plane) -> None:
    with broker_client(plane) as client:
        client.flushall()


def reset_broker_connections(plane: Plane, *, times: int = 5, within_s: float = 3.0) -> None:
    """Every connection but our own is ended by the server, again and again."""
    with broker_client(plane) as client:
        for _ in range(times):
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            time.sleep(within_s / times)


@contextmanager
def locked_database(plane: Plane) -> Generator[None]:
    """Nobody else can write while the block runs. SQLite only."""
    with plane.database.write() as session:
        session.execute(text("UPDATE jobs SET id = id WHERE 1 = 0"))
        yield


@contextmanager
def frozen(*pids: int, between_writes_of: Plane | None = None) -> Generator[None]:
    """SIGSTOP for a block; SIGCONT to those that are still there.

    `between_writes_of`: none of them is stopped while it writes, for SQLite's one lock would stand still with it.
    """
    with locked_database(between_writes_of) if between_writes_of else nullcontext():
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGCONT)


def spoil(path: Path, how: str, *, at: float) -> None:
    """Truncate the file, or flip one bit of it, `at` a share of its length."""
    data = bytearray(path.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    if how == "truncate":
        del data[place:]
    else:
        data[place] ^= 1 << (place % 8)
    path.write_bytes(data)


def launcher_of(plane: Plane, host: str = "a") -> int:
    """The one that holds the lock: while a new launcher waits for an old one there are two."""
    parent = psutil.Process(plane.worker(host).pid)
    return plane.until(
        lambda: next((child.pid for child in parent.children() if child.name() == "ly-launcher"), None),
        f"{host} has a launcher ({lock_path})",
        stated_s=5,
    )


def supervisor_of(plane: Plane, job_id: str) -> int:
    number = plane.client.job(job_id)["attempt"]["number"]
    return plane.until(
        lambda: run_lock.holder(plane.run_dir(job_id, number)), "the supervisor has its lock", stated_s=5
    )


def ranks_of(plane: Plane, job_id: str) -> dict[int, int]:
    """Pids of the newest attempt's ranks by number; not what they have forked."""
    return {int(environment["RANK"]): pid for pid, environment, is_rank in _members(plane, job_id) if is_rank}


def loaders_of(plane: Plane, job_id: str) -> list[int]:
    """What the ranks of the newest attempt have forked."""
    return [pid for pid, _, is_rank in _members(plane, job_id) if not is_rank]


def processes_of(plane: Plane, host: str) -> list[int]:
    """The host's supervisors, and every process of its attempts."""
    with plane.database.read() as session:
        open_here = attempts.open_on_host(session, host)
    alive = strays(plane)
    supervisors = [run_lock.holder(plane.run_dir(one.job_id, one.number)) for one in open_here]
    return [*filter(None, supervisors), *(pid for one in open_here for pid in alive.get(one.id, []))]


def broker_client(plane: Plane) -> Any:
    return redis.Redis.from_url(f"unix://{plane.settings.broker_socket}", driver_info=None)


def _members(plane: Plane, job_id: str) -> list[tuple[int, dict[str, str], bool]]:
    with plane.database.read() as session:
        attempt = attempts.newest(session, job_id)
    assert attempt is not None
    pids = strays(plane).get(attempt.id, [])
    found: list[tuple[int, dict[str, str], bool]] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found.append((pid, process.environ(), process.ppid() not in pids))
        except psutil.Error:
            continue
    return found
