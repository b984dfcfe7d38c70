"""Owns what the kernel tells of processes, and asks of it: descendants, environments, death signals, the clock of this boot. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ATTEMPT_VARIABLE: Final = "LONGYARD_ATTEMPT_ID"
"""In the environment of every rank and of all it starts: how a host finds what a dead supervisor left behind."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


def boottime() -> float:
    """Seconds since boot, suspension included. Leases are judged by it: no wall clock, and no clock of another machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def die_with_parent(parent_pid: int, *, by: signal.Signals) -> None:
    """Have the kernel send `by` when the parent dies; ends this process at once where it is dead already.

    It fires when the parent's thread that forked ends, so parents fork from a thread that stays.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent_pid:
        os._exit(0)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def name_this(name: str) -> None:
    """What ps and top show, 15 characters. The environment is left alone: strays are found by it."""
    _libc.prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]), 0, 0, 0)


def reap() -> tuple[list[tuple[int, int]], bool]:
    """Collect every child that has ended: [(pid, exit code, or -signal)], and whether any child is left.

    For a subreaper, no child left is the proof that no descendant is.
    """
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, True
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def descendants(pid: int) -> list[int]:
    """Children, their children and so on. A snapshot: whoever kills them looks again until there are none."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        parent = _parent_of(other)
        if parent is not None:
            children.setdefault(parent, []).append(other)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def of_attempt(attempt_id: str) -> list[int]:
    """Processes whose environment carries the attempt's id. The environment is that of the exec: forked children inherit it."""
    return with_variable(ATTEMPT_VARIABLE, attempt_id)


def with_variable(name: str, value: str) -> list[int]:
    """Processes that were started with this variable at this value."""
    needle = f"{name}={value}".encode()
    return [pid for pid in _pids() if needle in _environment_of(pid)]


def variable_of(pid: int, name: str) -> str | None:
    """From the environment that the process was started with."""
    start = f"{name}=".encode()
    return next((line.removeprefix(start).decode() for line in _environment_of(pid) if line.startswith(start)), None)


def send(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def signal_name(number: int) -> str:
    """As signal.h has it; the real-time ones have numbers alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def catches(pid: int, signum: signal.Signals) -> bool:
    """Whether the process has a handler for the signal: without one most signals end it."""
    caught = _status_of(pid).get("SigCgt", "0")
    return bool(int(caught, 16) >> (signum - 1) & 1)


def standing(pid: int) -> str:
    """What a process that says nothing is doing, in the kernel's words: its state, and what it waits for where we may know."""
    try:
        waits_for = Path(f"/proc/{pid}/wchan").read_text("ascii").strip()
    except OSError:
        waits_for = ""
    state = _status_of(pid).get("State", "gone")
    return state if waits_for in ("", "0") else f"{state}, in {waits_for}"


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name is in brackets and may hold anything, brackets and spaces too.
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def _status_of(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
