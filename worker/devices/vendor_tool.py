"""Owns asking a vendor's tool what it sees of this host's cards: npu-smi, nvidia-smi, or the stand-in of a simulated host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from linux import child
from store.settings import Settings
from worker.devices import report
from worker.devices.report import NVIDIA_PROCESS_QUERY, NVIDIA_QUERY, Report, Unreadable
from worker.ingest.tail import clean

ASK_TIMEOUT_S: Final = 20.0
MAX_WORDS: Final = 200
DIE_S: Final = 0.5
"""What a killed tool gets to be gone."""
STATE_FILE: Final = "npu-sim.json"

_STUCK: Final[list[subprocess.Popen[str]]] = []
"""Tools that could not be ended. Asking again would only leave one more."""


class Silent(Exception):
    """The tool gave no answer that can be read; the message is a clause that names the tool."""


@dataclass(frozen=True)
class Tool:
    """`commands` are run one after the other, and `read` gets what each printed."""

    name: str
    commands: Sequence[Sequence[str]]
    read: Callable[..., Report]

    @property
    def is_here(self) -> bool:
        return shutil.which(self.commands[0][0]) is not None

    def ask(self, *, within_s: float = ASK_TIMEOUT_S) -> Report:
        """Raises Silent."""
        give_up_at = time.monotonic() + within_s
        answers = [_run(self.name, command, give_up_at=give_up_at) for command in self.commands]
        try:
            return self.read(*answers)
        # Numbers and columns that nobody has thought of are as silent as no answer.
        except (Unreadable, ValueError, LookupError) as error:
            raise Silent(f"{self.name} answered what cannot be read ({error})") from error


ASCEND: Final = Tool("npu-smi", (("npu-smi", "info"),), report.read_ascend)
NVIDIA: Final = Tool(
    "nvidia-smi",
    (
        ("nvidia-smi", f"--query-gpu={','.join(NVIDIA_QUERY)}", "--format=csv,noheader,nounits"),
        ("nvidia-smi", f"--query-compute-apps={','.join(NVIDIA_PROCESS_QUERY)}", "--format=csv,noheader,nounits"),
    ),
    report.read_nvidia,
)


def simulated(settings: Settings, *, num_cards: int) -> Tool:
    """The stand-in, as this host's. What it prints goes through the reader of the real one."""
    options = {"--cards": num_cards, "--host": settings.host_name, "--state": settings.host_dir / STATE_FILE}
    argv = [sys.executable, "-P", "-m", "worker.devices.simulator", "info"]
    return Tool("npu-smi", ((*argv, *(str(part) for pair in options.items() for part in pair)),), report.read_ascend)


def _run(name: str, command: Sequence[str], *, give_up_at: float) -> str:
    timeout_s = max(0.1, give_up_at - time.monotonic())
    if any(one.args == command and one.poll() is None for one in _STUCK):
        raise Silent(f"{name} was asked before and cannot be ended: it waits in the kernel, for its driver as a rule")
    try:
        asked = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "PYTHONPATH": child.python_path()},
            # What it starts, as a wrapper does, ends with it.
            start_new_session=True,
        )
    except OSError as error:
        raise Silent(f"{name} cannot be started ({error.strerror})") from error
    try:
        said, complained = asked.communicate(timeout=timeout_s)
    except BaseException as error:
        _end(asked)
        if isinstance(error, subprocess.TimeoutExpired):
            raise Silent(f"{name} gave no answer within {timeout_s:.0f} s") from error
        raise
    if asked.returncode:
        words = " ".join((complained or said).split())[:MAX_WORDS] or "without a word"
        raise Silent(f"{name} ended with exit code {asked.returncode} ({words})")
    return clean(said)


def _end(asked: subprocess.Popen[str]) -> None:
    """Kill it and all it started; one that waits in the kernel is left behind, and remembered."""
    with suppress(ProcessLookupError):
        os.killpg(asked.pid, signal.SIGKILL)
    try:
        asked.wait(DIE_S)
    except subprocess.TimeoutExpired:
        _STUCK[:] = [*(one for one in _STUCK if one.poll() is None), asked]
    for pipe in (asked.stdout, asked.stderr):
        if pipe is not None:
            pipe.close()
