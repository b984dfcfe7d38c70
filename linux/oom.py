"""Owns the evidence that the kernel killed a process for want of memory: the attempt's control group, the kernel's log, or a counter."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from linux.cgroup import Cgroup

RECORD_BYTES: Final = 8192
_KILLED: Final = re.compile(rb"[Kk]illed process (\d+)")
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"


class OomWatch:
    """From before the ranks start. The best witness decides: the group counts only ours, the log names pids, a counter counts all."""

    def __init__(self, cgroup: Cgroup | None, *, kernel_log: str = "/dev/kmsg") -> None:
        self._cgroup = cgroup
        self._before = kills_here()
        self._log = _open_at_end(kernel_log)
        self._named: set[int] = set()

    def has_killed(self, pids: Collection[int]) -> bool:
        """Whether the kernel ended one of these, once they are gone."""
        of_group = None if self._cgroup is None else self._cgroup.out_of_memory_kills
        if of_group is not None:
            return of_group > 0
        if self._log is not None:
            self._named |= set(_pids_in(self._log))
            return not self._named.isdisjoint(pids)
        return kills_here() > self._before

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None


def kills_here() -> int:
    """How often it has killed so far in this process's control group where that can be seen, else on the machine."""
    for path, key in (*_memory_events(), (Path("/proc/vmstat"), "oom_kill")):
        try:
            for line in path.read_text("ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0


def _memory_events() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events", "oom_kill"
        elif controllers == "memory":
            yield Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control", "oom_kill"


def _open_at_end(path: str) -> int | None:
    """None where it may not be read, or where its pids are not those that this process sees."""
    try:
        if os.readlink("/proc/self/ns/pid") != _INITIAL_PID_NAMESPACE:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    os.lseek(descriptor, 0, os.SEEK_END)
    return descriptor


def _pids_in(descriptor: int) -> Iterator[int]:
    while True:
        try:
            record = os.read(descriptor, RECORD_BYTES)
        except BrokenPipeError:
            # Records were overwritten before they were read; the next one is there.
            continue
        except OSError:
            return
        if not record:
            return
        yield from (int(pid) for pid in _KILLED.findall(record))
