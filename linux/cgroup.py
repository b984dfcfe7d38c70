"""Owns the control group of an attempt, where the kernel lets us make one: whatever its processes do, they do not leave it.

Version 2 alone, without a controller of our own: it ends all at once, tells when none is left, and counts those that died of want of memory
where the memory controller is on. Made below the group this process is in; the name of the attempt's is kept in its run directory.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

FILE: Final = "cgroup"
"""In the run directory: where the attempt's group is, for whoever cleans up after its supervisor."""
PREFIX: Final = "longyard-"
_CLONE_INTO_CGROUP: Final = 0x200000000
_CLONE3: Final = 435
_ALONE_WITHIN_S: Final = 0.02
_api = ctypes.PyDLL(None, use_errno=True)

log = logging.getLogger(__name__)


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    ]


class Cgroup:
    """One attempt's group. It may be gone at any time: an operator, or the service manager, can remove it once it is empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def make(cls, attempt_id: str, run_dir: Path) -> Self | None:
        """A new one, or None where none can be made; everything works without."""
        parent = own_directory()
        if parent is None or not os.access(parent, os.W_OK) or not os.access(parent / "cgroup.procs", os.W_OK):
            return None
        directory = parent / f"{PREFIX}{attempt_id}"
        try:
            directory.mkdir(exist_ok=True)
            (run_dir / FILE).write_text(str(directory), encoding="utf-8")
        except OSError as error:
            log.info("no control group: %s", error)
            return None
        return cls(directory)

    @classmethod
    def of_run(cls, attempt_id: str, run_dir: Path) -> Self | None:
        """The one that was made for the attempt, if it is still there. The file is only believed where it names a group of that name."""
        try:
            directory = Path((run_dir / FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        is_ours = directory.name == f"{PREFIX}{attempt_id}" and _mount_of(directory) is not None
        return cls(directory) if is_ours and (directory / "cgroup.events").is_file() else None

    @property
    def is_populated(self) -> bool:
        """Whether a process lives in it or below it; zombies do not count. Once it cannot be read it is gone, and so are they."""
        return self._count("cgroup.events", "populated") == 1

    @property
    def out_of_memory_kills(self) -> int | None:
        """None where the memory controller does not watch this group."""
        return self._count("memory.events", "oom_kill")

    def kill(self) -> None:
        """SIGKILL to every process in it, those that are being forked too."""
        with suppress(OSError):
            (self.directory / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Once it is empty."""
        with suppress(OSError):
            self.directory.rmdir()

    def fork(self) -> int:
        """`os.fork`, with the child in the group from its first instruction on; outside of it where the group is gone. Raises OSError."""
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return os.fork()
        try:
            if _is_alone():
                # Older kernels, and sandboxes, forbid the call.
                with suppress(OSError):
                    return _clone_into(descriptor)
            # Moving costs the child up to 20 ms.
            pid = os.fork()
            if pid == 0:
                with suppress(OSError):
                    (self.directory / "cgroup.procs").write_text("0")
            return pid
        finally:
            os.close(descriptor)

    def _count(self, file: str, key: str) -> int | None:
        try:
            lines = (self.directory / file).read_text("ascii").splitlines()
        except OSError:
            return None
        return next((int(value) for name, _, value in (line.partition(" ") for line in lines) if name == key), None)


def own_directory() -> Path | None:
    """The directory of the version 2 group that this process is in; None where no such hierarchy is mounted."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        path = path_of(file.read())
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = mounts_of(file.read())
    if path is None:
        return None
    for root, point in mounts:
        # In a container only a part of the hierarchy may be mounted, and a path above it cannot be reached.
        if path == root or path.startswith(root.rstrip("/") + "/"):
            return point / path[len(root.rstrip("/")) :].lstrip("/")
    return None


def path_of(membership: str) -> str | None:
    """From /proc/<pid>/cgroup: the line of version 2 has neither number nor controllers."""
    return next((line[3:] for line in membership.splitlines() if line.startswith("0::/")), None)


def mounts_of(mountinfo: str) -> list[tuple[str, Path]]:
    """From /proc/<pid>/mountinfo: (root of the mount, where it is) of every version 2 hierarchy."""
    found: list[tuple[str, Path]] = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ")[0] == "cgroup2":
            _, _, _, root, point, *_ = fields.split(" ")
            found.append((_unescape(root), Path(_unescape(point))))
    return found


def _mount_of(directory: Path) -> Path | None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [point for _, point in mounts_of(file.read())]
    return next((point for point in points if directory.resolve().is_relative_to(point)), None)


def _unescape(text: str) -> str:
    """Spaces, tabs, newlines and backslashes are octal there."""
    return text.encode("ascii", "backslashreplace").decode("unicode_escape")


def _is_alone() -> bool:
    """Whether this is the process's only thread, by the kernel's word, as soon as it is. One that Python has joined may still be leaving.

    It may hold a lock of the C library while it does, which only that library's own fork waits for: a child of another call would wait for
    ever in its first malloc.
    """
    deadline = time.monotonic() + _ALONE_WITHIN_S
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


def _clone_into(descriptor: int) -> int:
    """Moving a process that runs waits for every CPU; one that is born in the group does not. No library offers it, so: the system call."""
    arguments = _CloneArgs(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=descriptor)
    _api.syscall.restype = ctypes.c_long
    # What os.fork does around its own call: locks of the interpreter are taken, and given back on both sides.
    _api.PyOS_BeforeFork()
    pid: int = _api.syscall(ctypes.c_long(_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments)))
    code = ctypes.get_errno()
    if pid == 0:
        _api.PyOS_AfterFork_Child()
        return 0
    _api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code or errno.EIO, os.strerror(code))
    return pid
