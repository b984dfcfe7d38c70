"""What goes wrong inside the processes of a plane under test. Python imports this at start; a file beside it, named for a fault, switches.

Standard library only: it runs before anything of ours, in every process of the plane, and changes nothing while no switch is there.
"""

from __future__ import annotations

import datetime as datetimes
import errno
import json
import os
import pathlib
import signal
import sys
import time
from pathlib import Path

SWITCHES = Path(__file__).parent
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KERNEL_LOG = "/dev/kmsg"
OOM_COUNTERS = ("memory.events", "memory.oom_control", "vmstat")
LOOK_AGAIN_S = 0.05

MODULE = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
"""Which part of the plane this is; a supervisor is a worker.forkserver.server."""

_read_text, _write_text, _open = pathlib.Path.read_text, pathlib.Path.write_text, os.open
_kill, _fsync = os.kill, os.fsync
_time, _time_ns, _datetime = time.time, time.time_ns, datetimes.datetime


def switched(name: str) -> str | None:
    """What the switch's file says, now; None while there is none."""
    try:
        return _read_text(SWITCHES / name, "utf-8")
    except FileNotFoundError:
        return None


def read_text(self, *args, **kwargs):
    """F22: another boot id. F26: the kernel has killed for want of memory."""
    if self == BOOT_ID and (told := switched("boot_id")):
        return told
    counted = switched("oom_kills") if self.name in OOM_COUNTERS else None
    return (f"oom_kill {counted}\n" if counted else "") + _read_text(self, *args, **kwargs)


def open_(path, *args, **kwargs):
    """F26: the kernel's log, which would name those that it killed, may not be read."""
    if path == KERNEL_LOG:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
    return _open(path, *args, **kwargs)


def write_text(self, *args, **kwargs):
    if self.name == "cgroup.kill" and switched("immortal"):
        return 0
    return _write_text(self, *args, **kwargs)


def kill(pid, signum):
    """F21: a process that no signal ends, as one in an uninterruptible wait."""
    if signum == signal.SIGKILL and str(pid) in (switched("immortal") or "").split():
        return
    _kill(pid, signum)


def fsync(descriptor):
    """F16: the disk is full where the checkpoint is written that the switch names."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    sys.audit("longyard.fsync", path)
    if (full := switched("disk_full")) is not None and full in path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    _fsync(descriptor)


class DeathInSave:
    """F17: in its second save this process dies, at the n-th thing it does there or some milliseconds after it.

    The switch says where by attempt: {"a1": [7, 0], "a2": [3, 1.5]}. What is counted is what the interpreter is audited for.
    """

    def __init__(self, point):
        self.index, self.delay_ms = point
        self.saves = set()
        self.seen = 0

    def __call__(self, event, args):
        path = next(
            (str(one) for one in args if isinstance(one, str | os.PathLike) and "/checkpoints" in str(one)), None
        )
        if path is None:
            return
        self.saves |= {part for part in Path(path).parts if part.endswith(".tmp")}
        if len(self.saves) == 2:
            self.seen += 1
            if self.seen == self.index:
                self.die()

    def die(self):
        if self.delay_ms == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        # Nobody handles SIGALRM: the kernel ends the process wherever it is then.
        signal.setitimer(signal.ITIMER_REAL, self.delay_ms / 1000)


class Shift:
    """F15: how far this part's wall clock is off, in seconds."""

    seen_at, offset_s = -1.0, 0.0

    @classmethod
    def now(cls):
        at = time.monotonic()
        if at >= cls.seen_at + LOOK_AGAIN_S:
            cls.seen_at, cls.offset_s = at, float(switched(f"clock {MODULE}") or 0)
        return cls.offset_s


class Shifted(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, _datetime)


class datetime(_datetime, metaclass=Shifted):  # noqa: N801 - it takes that one's place
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetimes.timedelta(seconds=Shift.now())


pathlib.Path.read_text, pathlib.Path.write_text, os.open = read_text, write_text, open_
os.kill, os.fsync = kill, fsync
if switched("clocks") is not None:
    time.time = lambda: _time() + Shift.now()
    time.time_ns = lambda: _time_ns() + int(Shift.now() * 1e9)
    datetimes.datetime = datetime
if MODULE == "trainer" and (points := switched("die_in_save")) is not None:
    attempt = Path(sys.orig_argv[-1]).parent.name
    if attempt in json.loads(points):
        sys.addaudithook(DeathInSave(json.loads(points)[attempt]))
