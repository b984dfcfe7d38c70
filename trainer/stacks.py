"""Owns what a rank that hangs tells of itself: on SIGUSR1 the stack of each of its threads goes to r<rank>.stack.

Written by the signal's handler in C, so that it works while Python waits inside a collective or holds a lock.
"""

import faulthandler
import os
import signal
from pathlib import Path


def listen(directory: Path, rank: int) -> None:
    """Takes SIGUSR1 from here on; r<rank>.stack, empty until a signal comes, says so to whoever would send one.

    A crash in native code (SIGSEGV, SIGABRT and the like) prints its stacks to the log.
    """
    faulthandler.enable()
    path = directory / f"r{rank}.stack"
    temporary = path.with_suffix(".stack.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    # Left open for as long as the process lives.
    descriptor = os.open(temporary, flags, 0o644)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)
    # The signal ends a process that does not take it: the name appears only now.
    temporary.rename(path)
