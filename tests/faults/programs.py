"""What jobs do while something goes wrong: programs of the fake trainer, and how far one has come."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.client import TERMINAL
from tests.faults.plane import Operation, Plane


def lesson(
    steps: int = 60,
    *,
    step_s: float = 0.002,
    save_every: int = 20,
    hold_at: int = -1,
    gate: Path | None = None,
    die_after: int = 0,
    before: tuple[Operation, ...] = (),
) -> list[Operation]:
    """A run whose losses show any step lost or done twice (K1). At step `hold_at` it waits for the file `gate`."""
    train = {"do": "train", "steps": steps, "step_s": step_s, "save_every": save_every, "die_after": die_after}
    return [*before, train | {"hold_at": hold_at, "gate": str(gate)}, {"do": "succeed"}]


def until_step(plane: Plane, job_id: str, step: int) -> None:
    plane.until(lambda: step_of(plane, job_id) >= step, f"{job_id} is at step {step}", stated_s=30)


def step_of(plane: Plane, job_id: str) -> int:
    return (plane.client.job(job_id)["progress"] or {}).get("step") or 0


def until_saved(plane: Plane, job_id: str, times: int = 1) -> None:
    """So many checkpoints are rows."""
    plane.until(lambda: plane.client.kinds(job_id).count("checkpoint") >= times, f"{job_id} has saved", stated_s=30)


def until_said(plane: Plane, job_id: str, words: str, *, rank: int = 0) -> None:
    plane.until(
        lambda: words in plane.client.log(job_id, rank=rank), f"rank {rank} of {job_id} says {words}", stated_s=30
    )


def until_attempt(plane: Plane, job_id: str, number: int, *, stated_s: float = 60) -> None:
    """The attempt of this number runs, or has."""
    plane.until(
        partial(_has_begun, plane, job_id, number), f"attempt {number} of {job_id} has begun", stated_s=stated_s
    )


def until_ended(plane: Plane, job_id: str, *, stated_s: float = 120) -> dict[str, Any]:
    plane.until(lambda: plane.client.status(job_id) in TERMINAL, f"{job_id} has ended", stated_s=stated_s)
    return plane.client.job(job_id)


def until_closed(plane: Plane, job_id: str, number: int = 1, *, stated_s: float = 60) -> dict[str, Any]:
    """The attempt of this number, once it is closed."""

    def closed() -> dict[str, Any] | None:
        found = next((one for one in plane.client.attempts(job_id) if one["number"] == number), None)
        return found if found is not None and found["exit_reason"] else None

    return plane.until(closed, f"attempt {number} of {job_id} is closed", stated_s=stated_s)


def _has_begun(plane: Plane, job_id: str, number: int) -> bool:
    attempt = plane.client.job(job_id)["attempt"]
    if attempt is None or attempt["number"] < number:
        return False
    return attempt["number"] > number or attempt["status"] != "starting"
