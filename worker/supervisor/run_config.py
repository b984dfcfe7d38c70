"""Owns config.json: the inputs are looked at once more, the checkpoint to go on from is chosen, and the facts of the launch are added."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.data_roots import resolve
from store.errors import PathRefused, PathUnreachable
from store.models import Checkpoint, Job
from store.settings import Settings
from store.states import ExitReason
from trainer.spec.config import RunConfig, TrainConfig, check_inputs, inputs, kind_of
from worker.doctor import preflight
from worker.supervisor import resumption
from worker.supervisor.exit_reason import Verdict
from worker.supervisor.resumption import Choice

FILE_FIELDS = frozenset(["train_file", "validation_file"])


class Refused(Exception):
    """The attempt is not to be launched; the verdict's message is a sentence for people that names the field."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


def prepare(
    settings: Settings,
    job: Job,
    newest_first: Sequence[Checkpoint],
    run_dir: Path,
    *,
    cpu_threads: int,
    device_type: str,
    devices: Sequence[int],
    is_over: Callable[[], bool],
) -> Choice:
    """Write `run_dir`/config.json, whole; answers which of the job's checkpoints is in it. Reads files, and no row.

    Raises Refused, and resumption.Interrupted once `is_over`.
    """
    try:
        train = TrainConfig.model_validate(job.train)
    except ValidationError as error:
        raise _user_error(_say(error)) from error
    _check_inputs(settings, train)
    refused = preflight.refusal(settings, job.train, devices=devices)
    if refused is not None:
        raise Refused(Verdict(*refused))
    choice = resumption.choose(newest_first, is_over=is_over)
    found = choice.found
    facts: dict[str, Any] = {
        "device_type": device_type,
        "rendezvous": f"file://{run_dir / 'rendezvous'}",
        "resume_from_checkpoint": {"dir": found.dir, "manifest_sha256": found.manifest_sha256} if found else None,
        "cpu_threads": cpu_threads,
        "allow_network": settings.allow_network,
        "cache_dir": str(settings.token_cache_dir),
    }
    try:
        config = RunConfig.model_validate(train.model_dump() | facts)
    except ValidationError as error:
        raise _user_error(_say(error)) from error
    _write(run_dir / "config.json", config.model_dump_json(indent=1))
    return choice


def _check_inputs(settings: Settings, train: TrainConfig) -> None:
    """As the API does where it sees the files: here they are seen for certain."""
    for field, value in inputs(train).items():
        if kind_of(value) == "path" or field in FILE_FIELDS:
            try:
                resolve(value, roots=settings.data_roots, kind="file" if field in FILE_FIELDS else "directory")
            except PathUnreachable as error:
                words = f"on host {settings.host_name} train.{field} ({value}): {error}"
                raise Refused(Verdict(ExitReason.STORAGE, words)) from error
            except PathRefused as error:
                raise _user_error(f"train.{field}: {error}; {error.fix}") from error
    for problem in check_inputs(train, allow_network=settings.allow_network):
        raise _user_error(f"train.{problem.field}: {problem.message}")


def _user_error(message: str) -> Refused:
    return Refused(Verdict(ExitReason.USER_ERROR, message))


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)


def _say(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"train.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
