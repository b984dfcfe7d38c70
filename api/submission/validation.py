"""What a submitted spec means: the preset resolved, and everything that can be known to be wrong said before anything is queued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import errors, schemas, validation_errors
from store import data_roots as roots
from store import planning_queue, usage
from store.errors import PathRefused
from store.hosts import HostView
from store.jobs import NewJob
from store.placement import planner
from store.placement.types import ANY, Placement, Wait
from store.settings import Settings
from trainer.spec import config, presets
from trainer.spec.config import TrainConfig

TEXT_FIELDS: Final = ("train_file", "validation_file")


def resolve(spec: schemas.JobSpec) -> tuple[NewJob, TrainConfig]:
    """The whole spec, nothing left to default; its `train` as it is stored, and as it was validated.

    Raises Problem where the preset is unknown or the fields contradict each other.
    """
    preset = presets.PRESETS.get(spec.preset)
    if preset is None:
        raise errors.blame("invalid_spec", [_unknown_preset(spec.preset)])
    try:
        train = presets.resolve(preset, spec.train.model_dump(exclude_unset=True))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        told = validation_errors.of_train(found)
        raise errors.blame("invalid_spec", told, num_unlisted=len(found) - len(told)) from None
    new = NewJob(
        name=spec.name or preset.name,
        preset=preset.name,
        train=train.model_dump(mode="json"),
        num_devices=spec.num_devices or preset.num_devices,
        device_type=spec.device_type or preset.device_type,
        priority=spec.priority,
        labels=spec.labels,
        time_limit_s=spec.time_limit_s,
    )
    return new, train


def digest(spec: schemas.JobSpec) -> str:
    """The same for two bodies that ask for the same, however they are written."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(spec: NewJob, train: TrainConfig, *, owner: str, known_hosts: Sequence[HostView], settings: Settings) -> None:
    """Raises Problem with every field that says what cannot be."""
    found = [
        *_check_devices(spec, known_hosts),
        *_check_quota(spec, owner, settings),
        *_check_precision(spec, train),
        *_check_inputs(train, settings),
    ]
    if found:
        raise errors.blame("invalid_spec", found)


def verdict(session: Session, spec: NewJob, *, owner: str, settings: Settings) -> Placement | Wait:
    """Where the job would start if it were submitted now, or why it would wait: the planner's own answer to what it would read."""
    lately = usage.recent(session)
    situation = planning_queue.read(session, lately, also=planning_queue.newcomer(spec, owner, lately))
    plan = planner.plan(
        [one.job for one in situation.waiting],
        situation.hosts,
        running=situation.running,
        owners=situation.shares(lately, quotas=settings.quotas, weights=settings.weights),
        tell=len(situation.waiting),
    )
    return next(one for one in [*plan.placements, *plan.waits] if one.job_id == planning_queue.NEWCOMER)


def device_type_at(spec: NewJob, verdict: Placement | Wait, known_hosts: Sequence[HostView]) -> str:
    """What the job would run on; `any` where it takes what comes and has not been given anything yet."""
    if spec.device_type != ANY or not isinstance(verdict, Placement):
        return spec.device_type
    return next((view.host.device_type for view in known_hosts if view.host.name == verdict.host), ANY)


def _unknown_preset(name: str) -> schemas.FieldError:
    close = validation_errors.nearest(name, list(presets.PRESETS))
    known = ", ".join(presets.PRESETS)
    fix = f"did you mean {close}? There are: {known}" if close else f"take one of: {known}"
    return _error("preset", "unknown_preset", f"there is no preset {name!r}", fix=fix)


def _check_devices(spec: NewJob, known_hosts: Sequence[HostView]) -> list[schemas.FieldError]:
    """Only what no registered host could ever run; a host that is busy, draining or away is worth waiting for."""
    if not known_hosts:
        return []
    serving = [view for view in known_hosts if spec.device_type in {view.host.device_type, ANY}]
    if not serving:
        kinds = ", ".join(sorted({kind for view in known_hosts for kind in view.capacity.serves}))
        message = f"no registered host has {spec.device_type} devices"
        return [_error("device_type", "no_such_device", message, fix=f"take one of {kinds}, or register such a host")]
    largest = max(serving, key=lambda view: len(view.devices))
    size = len(largest.devices)
    if spec.num_devices <= size:
        return []
    kind = "" if spec.device_type == ANY else f" with {spec.device_type}"
    message = f"{spec.num_devices} is more than any host has; the largest{kind}, {largest.host.name}, has {size}"
    return [_error("num_devices", "too_large", message, fix=f"lower it to {size}, or register a larger host")]


def _check_quota(spec: NewJob, owner: str, settings: Settings) -> list[schemas.FieldError]:
    """Only what can never be; what their other jobs hold meanwhile is worth waiting for."""
    limit = usage.quota_of(owner, settings.quotas)
    if limit is None or spec.num_devices <= limit:
        return []
    message = f"{spec.num_devices} is more than {owner} may hold at once, which is {limit}"
    ask = "have the operator raise LONGYARD_QUOTAS"
    return [_error("num_devices", "over_quota", message, fix=f"lower it to {limit}, or {ask}" if limit else ask)]


def _check_precision(spec: NewJob, train: TrainConfig) -> list[schemas.FieldError]:
    if train.fp16 and spec.device_type in ("cpu", ANY):
        return [_error("train.fp16", "inconsistent", "float16 does not run on cpu", fix="use bf16 or neither")]
    return []


def _check_inputs(train: TrainConfig, settings: Settings) -> list[schemas.FieldError]:
    """Names first; then, of the paths whose root this machine sees, what is there. The worker checks the others before a launch."""
    found: list[schemas.FieldError] = []
    seen: set[str] = set()
    for field, value in config.inputs(train).items():
        error = _check_name(field, value, settings)
        if error is None and _is_path(field, value) and roots.visible(value, roots=settings.data_roots):
            error = _check_path(field, value, settings.data_roots)
            seen.add(field)
        if error is not None:
            found.append(error)
    if found:
        return found
    # Positions are read from the model's own config.json, which only counts where that directory is seen.
    problems = config.check_inputs(train, allow_network=settings.allow_network)
    return [
        _of_trainer(problem)
        for problem in problems
        if problem.field in seen or (problem.field == "max_seq_length" and seen)
    ]


def _check_name(field: str, value: str, settings: Settings) -> schemas.FieldError | None:
    where = f"train.{field}"
    if value.startswith("asset:"):
        return _error(
            where, "not_yet", "assets cannot be used yet", fix="give the path of a file or directory under a data root"
        )
    if not _is_path(field, value):
        if settings.allow_network:
            return None
        fix = "give a local directory under a data root, or have the operator set LONGYARD_ALLOW_NETWORK=true"
        return _error(where, "network_closed", f"{value!r} is a name on the hub, and the network is closed", fix=fix)
    return None if roots.covered(value, roots=settings.data_roots) else _check_path(field, value, settings.data_roots)


def _is_path(field: str, value: str) -> bool:
    return field in TEXT_FIELDS or config.kind_of(value) == "path"


def _check_path(field: str, value: str, data_roots: Sequence[Path]) -> schemas.FieldError | None:
    try:
        roots.resolve(value, roots=data_roots, kind="file" if field in TEXT_FIELDS else "directory")
    except PathRefused as error:
        return _error(f"train.{field}", "path_refused", str(error), fix=error.fix)
    return None


def _of_trainer(problem: config.Problem) -> schemas.FieldError:
    message, _, fix = problem.message.partition("; ")
    return _error(f"train.{problem.field}", "unusable", message, fix=fix or "correct it, or name another")


def _error(field: str, code: str, message: str, *, fix: str) -> schemas.FieldError:
    return schemas.FieldError(field=field, code=code, message=message, fix=fix)
