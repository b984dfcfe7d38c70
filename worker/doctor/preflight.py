"""Owns the look before a launch: at the notes of the worker's last checkup, and at what may have changed since.

A supervisor has a few milliseconds for it, before it prepares its attempt.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from linux import proc
from store.settings import Settings
from store.states import ExitReason
from trainer.estimate import request
from trainer.spec.config import TrainConfig
from worker.doctor.findings import Finding, Level
from worker.doctor.inputs import Known

FILE: Final = "preflight.json"
STALE_AFTER: Final = 5
"""Findings older than so many rounds are nobody's: the worker that made them is gone, or stands still."""

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Notes:
    """What the last checkup left for the launches after it."""

    findings: Sequence[Finding] = ()
    known: Mapping[str, str | None] = field(default_factory=dict[str, str | None])


def doom_of(findings: Iterable[Finding], *, devices: Iterable[int]) -> str | None:
    """Why nothing can run on these devices, in a sentence; None where it can."""
    wanted = set(devices)
    return next(
        (one.sentence for one in findings if one.dooms_jobs and (not one.devices or wanted & set(one.devices))), None
    )


def refusal(settings: Settings, train: Mapping[str, Any], *, devices: Sequence[int]) -> tuple[ExitReason, str] | None:
    """Why this launch would come to nothing; None where nothing says so. Reads the notes, the disk's fill and the inputs' stamps."""
    notes = _read(settings)
    words = doom_of(notes.findings, devices=devices)
    if words is not None:
        return ExitReason.LAUNCH_ERROR, f"host {settings.host_name} cannot run it: {words}"
    for problem in Known(notes.known).problems(settings, train):
        if problem.is_users:
            return ExitReason.USER_ERROR, problem.sentence
        return ExitReason.STORAGE, f"on host {settings.host_name} {problem.sentence}"
    return _no_room(settings, train)


def _no_room(settings: Settings, train: Mapping[str, Any]) -> tuple[ExitReason, str] | None:
    wanted = _checkpoint_bytes(train)
    free = shutil.disk_usage(settings.data_dir).free
    if free >= wanted:
        return None
    left = f"{settings.data_dir} on host {settings.host_name} has {free // MIB} MiB left"
    words = f"{left}, and one checkpoint takes at least {wanted // MIB} MiB"
    return ExitReason.STORAGE, f"{words}; delete old jobs there"


def _checkpoint_bytes(train: Mapping[str, Any]) -> int:
    try:
        return request.least_checkpoint_bytes(TrainConfig.model_validate(train))
    except ValidationError:
        # Whoever launches it says what is wrong with it.
        return 0


def leave(settings: Settings, notes: Notes) -> None:
    """For the launches until the next checkup."""
    answer = {
        "boot_id": proc.boot_id(),
        "written_at": proc.boottime(),
        "findings": [asdict(one) for one in notes.findings],
        "known": notes.known,
    }
    path = settings.host_dir / FILE
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    temporary.rename(path)


def _read(settings: Settings) -> Notes:
    try:
        found: dict[str, Any] = json.loads((settings.host_dir / FILE).read_bytes())
    except (OSError, ValueError):
        return Notes()
    try:
        age_s = proc.boottime() - found["written_at"]
        if found["boot_id"] != proc.boot_id() or age_s > STALE_AFTER * settings.checkup_s:
            return Notes()
        return Notes([_finding(one) for one in found["findings"]], found["known"])
    except (KeyError, TypeError, ValueError):
        # Another version's, while workers are replaced one after the other.
        return Notes()


def _finding(stored: Mapping[str, Any]) -> Finding:
    changed: dict[str, Any] = {"level": Level(stored["level"]), "devices": tuple(stored["devices"])}
    return Finding(**{**stored, **changed})
