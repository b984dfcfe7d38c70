"""Owns what is decided between placement and launch: the inputs are looked at again, where to resume from, and config.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError

from store import attempts, checkpoints, events
from store.db import Database
from store.errors import PathRefused
from store.models import Checkpoint, Job
from store.roots import resolve
from store.settings import Settings
from store.states import ExitReason
from trainer.config import RunConfig, TrainConfig, check_inputs, inputs, kind_of
from worker.cause import Verdict

CHUNK_BYTES: Final = 8 << 20
FILE_FIELDS = frozenset(["train_file", "validation_file"])


class Refused(Exception):
    """The attempt is not to be launched; the verdict's message is a sentence for people that names the field."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


def prepare(
    settings: Settings,
    database: Database,
    job: Job,
    run_dir: Path,
    *,
    attempt_id: str,
    cpu_threads: int,
    simulated: bool,
    renew: Callable[[], None],
) -> None:
    """Write `run_dir`/config.json, whole. `renew` is called now and then: checkpoints are large, and a lease is short.

    Raises Refused, and LeaseLost.
    """
    try:
        train = TrainConfig.model_validate(job.train)
    except ValidationError as error:
        raise _user_error(_say(error)) from error
    _check_inputs(settings, train)
    checkpoint = _resume_from(database, job, attempt_id, renew)
    facts: dict[str, Any] = {
        "device_type": "cpu" if simulated else job.device_type,
        "rendezvous": f"file://{run_dir / 'rendezvous'}",
        "resume_from_checkpoint": checkpoint,
        "cpu_threads": cpu_threads,
        "allow_network": settings.allow_network,
        "cache_dir": str(settings.token_cache_dir),
    }
    try:
        config = RunConfig.model_validate(train.model_dump() | facts)
    except ValidationError as error:
        raise _user_error(_say(error)) from error
    _write(run_dir / "config.json", config.model_dump_json(indent=1))


def verifies(directory: Path, manifest_sha256: str, *, renew: Callable[[], None]) -> bool:
    """Whether every file is the one that the checkpoint was published with."""
    try:
        manifest = (directory / "manifest.json").read_bytes()
        if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
            return False
        files = cast(dict[str, dict[str, Any]], json.loads(manifest)["files"])
        return all(_is_as_told(directory / name, facts, renew) for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _check_inputs(settings: Settings, train: TrainConfig) -> None:
    """As the API does where it sees the files: here they are seen for certain."""
    for field, value in inputs(train).items():
        if kind_of(value) == "path" or field in FILE_FIELDS:
            try:
                resolve(value, roots=settings.data_roots, kind="file" if field in FILE_FIELDS else "directory")
            except PathRefused as error:
                raise _user_error(f"train.{field}: {error}; {error.fix}") from error
    for problem in check_inputs(train, allow_network=settings.allow_network):
        raise _user_error(f"train.{problem.field}: {problem.message}")


def _resume_from(database: Database, job: Job, attempt_id: str, renew: Callable[[], None]) -> dict[str, str] | None:
    """The newest checkpoint whose files verify. One that does not is condemned; one whose directory is gone may be on another host."""
    with database.read() as session:
        rows = checkpoints.newest_first(session, job.id)
    corrupt: list[Checkpoint] = []
    found: Checkpoint | None = None
    for row in rows:
        if verifies(Path(row.dir), row.manifest_sha256, renew=renew):
            found = row
            break
        if Path(row.dir).exists():
            corrupt.append(row)
    if rows:
        # Old ones go when newer ones are written; that the newest is gone is news.
        missing = rows[0] if found is not rows[0] and rows[0] not in corrupt else None
        _tell(database, job.id, attempt_id, found=found, corrupt=corrupt, missing=missing)
    return {"dir": found.dir, "manifest_sha256": found.manifest_sha256} if found else None


def _tell(
    database: Database,
    job_id: str,
    attempt_id: str,
    *,
    found: Checkpoint | None,
    corrupt: Sequence[Checkpoint],
    missing: Checkpoint | None,
) -> None:
    with database.write() as session:
        job = attempts.renew(session, attempt_id, job_id=job_id)
        if missing:
            events.append(session, job, kind="checkpoint_missing", step=missing.step, dir=missing.dir)
        for row in corrupt:
            checkpoints.condemn(session, job, row.id)
        if found:
            events.append(session, job, kind="resuming", dir=found.dir)


def _user_error(message: str) -> Refused:
    return Refused(Verdict(ExitReason.USER_ERROR, message))


def _is_as_told(path: Path, facts: Mapping[str, Any], renew: Callable[[], None]) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.stat().st_size != facts["bytes"]:
            return False
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            renew()
    return digest.hexdigest() == facts["sha256"]


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)


def _say(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"train.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
