"""What a rank of the fake trainer does so that others can judge: the kernel's locks on its device and its job, losses that tell a lie.

A plane that wants witnesses makes the directory `witness` in its data directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DIRECTORY = "witness"
RECORD = "locks.jsonl"
HOST_VARIABLE = "HF_HOME"
"""Of what reaches a rank, the one thing that is a host's own: its last part is the host's name."""


@dataclass
class Lesson:
    """What training has come to: a loss comes from every batch before it, so a step lost or done twice shows in all later ones."""

    step: int = 0
    position: int = 0
    total: int = 0

    def learn(self) -> dict[str, float]:
        """One step: the batch at the position, and the loss that it leaves."""
        batch = _digest(self.position)
        self.step, self.position, self.total = self.step + 1, self.position + 1, _digest(self.total, batch)
        return {"batch": batch, "loss": self.total / (1 << 40)}


def uninterrupted(steps: int) -> dict[int, dict[str, float]]:
    """What a run that nothing happens to reports, by step."""
    lesson = Lesson()
    return {step: lesson.learn() for step in range(1, steps + 1)}


def resume(config: dict[str, Any]) -> Lesson:
    found = config.get("resume_from_checkpoint")
    if not found:
        return Lesson()
    return Lesson(**json.loads((Path(found["dir"]) / "state.json").read_text())["lesson"])


def state_of(lesson: Lesson) -> dict[str, Any]:
    return {"step": lesson.step, "lesson": asdict(lesson)}


def take(run_dir: Path, rank: int) -> None:
    """Lock this rank's device and its place in the job for as long as it lives, and whatever it forks; write down what was refused."""
    directory = run_dir.parents[2] / DIRECTORY
    if not directory.is_dir():
        return
    names = [f"job {run_dir.parent.name} rank {rank}"]
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    if visible:
        host = Path(os.environ[HOST_VARIABLE]).name
        names.append(f"device {host} {visible.split(',')[rank]}")
    for name in names:
        _lock(directory, name)


def _lock(directory: Path, name: str) -> None:
    descriptor = os.open(directory / f"{name.replace(' ', '-')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = True
    except BlockingIOError:
        taken = False
    line = {
        "at": time.clock_gettime(time.CLOCK_BOOTTIME),
        "pid": os.getpid(),
        "attempt": os.environ["LONGYARD_ATTEMPT_ID"],
        "what": name,
        "taken": taken,
    }
    with open(directory / RECORD, "ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def _digest(*numbers: int) -> int:
    """40 bits: a float holds them exactly."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:5])
