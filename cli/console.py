"""Owns one step of set-up: a child in a process group of its own, shown while it runs, that ends when we end.

Standard library only: it runs before any package is installed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class StepError(Exception):
    """A step failed. The message is for people: the end of its output and where all of it is."""


def say(text: str, *, replace: bool = False) -> None:
    """A line on stderr; `replace` writes over the running step's line on a terminal."""
    prefix = "\r\x1b[K" if replace and sys.stderr.isatty() else ""
    print(f"{prefix}{text}", file=sys.stderr, flush=True)


def run(
    title: str, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path | None = None, optional: bool = False,
    telling: Callable[[str], bool] = bool,
) -> None:  # fmt: skip
    """Run `argv` to its end, appending its output to `log`; lines that are `telling` show how it goes on.

    Raises StepError when it fails. `optional` says so in one line instead of showing the output: the caller has another way.
    """
    started = time.monotonic()
    with open(log, "ab+") if log else tempfile.TemporaryFile() as output:
        begin = output.seek(0, os.SEEK_END)
        child = start(argv, cwd=cwd, env=env, output=output)
        try:
            _show(child, title, output, begin, telling, started)
        except BaseException:
            end(child)
            raise
        text = _tail(output, begin)
    if child.returncode == 0:
        say(f"{title}: done in {time.monotonic() - started:.0f} s", replace=True)
        return
    if optional:
        say(f"{title}: not found there, trying elsewhere", replace=True)
        raise StepError(title)
    shown = "\n".join("  " + line for line in text.splitlines()[-20:])
    raise StepError(
        f"{shown}\n\n{title} failed with exit code {child.returncode}" + (f"; its output is in {log}" if log else "")
    )


def start(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes] | None,
    on_our_death: signal.Signals = signal.SIGTERM,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A child in its own process group, so that a ^C reaches it through us only; the kernel signals it when we are killed.

    To be called from the main thread: the kernel sends the death signal when the thread that forked ends.
    """
    return subprocess.Popen(
        argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT if output else None,
        process_group=0, pass_fds=pass_fds, preexec_fn=partial(die_with_parent, os.getpid(), on_our_death),
    )  # fmt: skip


def end(child: subprocess.Popen[bytes], grace_s: float = 5) -> None:
    """SIGTERM to the child's group, then SIGKILL to what is left of it after the grace."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        try:
            child.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            continue


def die_with_parent(parent: int, sign: signal.Signals = signal.SIGTERM) -> None:
    """For a forked child before its exec: `sign` when the parent is gone, also when it went before we asked."""
    _prctl(PR_SET_PDEATHSIG, sign)
    if os.getppid() != parent:
        os.kill(os.getpid(), sign)


def _show(
    child: subprocess.Popen[bytes], title: str, output: IO[bytes], begin: int, telling: Callable[[str], bool], started: float
) -> None:  # fmt: skip
    tty = sys.stderr.isatty()
    if not tty:
        say(f"{title} …")
    told = started
    while True:
        try:
            child.wait(timeout=0.25 if tty else 1)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        lines = [line for line in _tail(output, begin).splitlines() if telling(line)]
        line = lines[-1].strip() if lines else ""
        if tty:
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + f"{title} … {now - started:.0f} s  {line}"[: width - 1])
            sys.stderr.flush()
        elif now - told >= 20:
            told = now
            say(f"  {now - started:.0f} s: {line[:100]}")


def _tail(output: IO[bytes], begin: int) -> str:
    size = os.fstat(output.fileno()).st_size
    return os.pread(output.fileno(), 8192, max(begin, size - 8192)).decode("utf-8", "replace")
