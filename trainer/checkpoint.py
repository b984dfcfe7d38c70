"""Owns checkpoints on disk: written whole or not at all, opened only if they are what their manifest says."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trainer import atomic_files
from trainer.errors import BrokenCheckpoint
from trainer.spec.config import CheckpointRef

_WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_FILES = (_WEIGHTS, _OPTIMIZER, _STATE)
_MANIFEST = "manifest.json"
_FORMAT = 1


class Published(NamedTuple):
    """A checkpoint that exists: its directory, and the hash by which it may be opened."""

    dir: Path
    manifest_sha256: str


def write(
    parent: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Published:
    """Writes step-<step> under parent: everything to disk under another name, then renamed.

    `state` is JSON: the data position and running sums. There is no generator state: each step seeds its own.
    """
    target = parent / f"step-{step}"
    temporary = parent / f"step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    if not parent.exists():
        parent.mkdir(parents=True)
        atomic_files.sync(parent.parent)
    temporary.mkdir()
    save_file(_weights(network), temporary / _WEIGHTS)
    tensors, numbers = _optimizer_state(network, optimizer)
    save_file(tensors, temporary / _OPTIMIZER)
    _write_json(temporary / _STATE, {"step": step, "optimizer": numbers, "state": state})
    files = {name: _describe(temporary / name) for name in _FILES}
    _write_json(temporary / _MANIFEST, {"format": _FORMAT, "step": step, "files": files})
    digest = hashlib.sha256((temporary / _MANIFEST).read_bytes()).hexdigest()
    # Only a run repeated by hand in one directory finds the target there.
    atomic_files.publish(temporary, target)
    return Published(target, digest)


def read(reference: CheckpointRef, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads weights and optimizer in place; returns the state that was written.

    Raises BrokenCheckpoint when anything differs from the manifest, or the manifest from the hash where one is given.
    """
    directory = Path(reference.dir)
    _verify(directory, reference.manifest_sha256)
    missing, unexpected = network.load_state_dict(load_file(directory / _WEIGHTS), strict=False)
    shared = _shared_names(network)
    if set(missing) - shared or unexpected:
        raise BrokenCheckpoint(f"{directory} is of another model: {sorted({*missing, *unexpected} - shared)[:3]}")
    saved = cast(dict[str, Any], json.loads((directory / _STATE).read_bytes()))
    _restore_optimizer(network, optimizer, load_file(directory / _OPTIMIZER), saved["optimizer"])
    return cast(dict[str, Any], saved["state"])


class Keep(NamedTuple):
    """Which checkpoints of a directory stay: the newest ones and the best within a budget, and the one resumed from.

    `step` is where the run is. Later ones are of an earlier run in the same directory, and older than any of this one.
    """

    newest: int
    budget_bytes: int | None
    best: Path | None
    resumed: Path | None
    step: int


def prune(parent: Path, keep: Keep, *, coming: bool = False) -> int:
    """Deletes what need not stay, and what a dead run left half written. Returns the bytes that stay.

    Over the budget the oldest go first and the best last; the newest and the one resumed from never do. With `coming`
    it makes room for one more, as large as the newest is.
    """
    for path in parent.glob("step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    found = _by_age(parent, keep.step)
    if not found:
        return 0
    fixed = {path.resolve() for path in (found[-1], keep.resumed) if path is not None}
    best = keep.best.resolve() if keep.best is not None else None
    for path in [p for p in found[: -keep.newest] if p.resolve() not in {*fixed, best}]:
        shutil.rmtree(path, ignore_errors=True)
        found.remove(path)
    sizes = {path: _size(path) for path in found}
    total = sum(sizes.values()) + (sizes[found[-1]] if coming else 0)
    for path in sorted(
        (p for p in found if p.resolve() not in fixed), key=lambda p: (p.resolve() == best, found.index(p))
    ):
        if keep.budget_bytes is None or total <= keep.budget_bytes:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= sizes[path]
    return total


def _by_age(parent: Path, now: int) -> list[Path]:
    """The published checkpoints, oldest first."""
    steps = {int(m[1]): path for path in parent.iterdir() if (m := re.fullmatch(r"step-(\d+)", path.name))}
    return [steps[step] for step in sorted(steps, key=lambda step: (step <= now, step))]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    shared = _shared_names(network)
    return {n: t.detach().cpu().contiguous() for n, t in network.state_dict().items() if n not in shared}


def _shared_names(network: nn.Module) -> set[str]:
    """Names of a tensor that has another, earlier name: tied weights are stored once."""
    seen: set[int] = set()
    shared: set[str] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            shared.add(name)
        seen.add(id(tensor))
    return shared


def _trained(network: nn.Module) -> dict[nn.Parameter, str]:
    return {p: name for name, p in network.named_parameters() if p.requires_grad}


def _optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """The optimizer's state by parameter name: tensors as `name/key`, plain numbers as {name: {key: number}}."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for parameter, name in _trained(network).items():
        for key, value in cast(dict[str, Any], optimizer.state[parameter]).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def _restore_optimizer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
    numbers: dict[str, dict[str, float]],
) -> None:
    by_name: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor
    names = _trained(network)
    layout = optimizer.state_dict()
    indices = [index for group in layout["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: by_name[names[p]] for i, p in zip(indices, parameters, strict=True) if names[p] in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": layout["param_groups"]})


def _verify(directory: Path, manifest_sha256: str | None) -> None:
    try:
        manifest = (directory / _MANIFEST).read_bytes()
    except OSError as error:
        raise BrokenCheckpoint(
            f"resume_from_checkpoint.dir: {directory.absolute()} has no {_MANIFEST} that can be read "
            f"({error.strerror}); give a directory checkpoints/step-<n> of a run"
        ) from error
    if manifest_sha256 not in (None, hashlib.sha256(manifest).hexdigest()):
        raise BrokenCheckpoint(
            f"resume_from_checkpoint.manifest_sha256: {directory}: the manifest is not the one this checkpoint was "
            "published with; give another checkpoint, or by hand leave the hash out to trust the manifest as it stands"
        )
    for name, expected in _files(directory, manifest).items():
        path = directory / name
        if not path.is_file() or _describe(path) != expected:
            raise BrokenCheckpoint(f"{path} is missing, or not the file this checkpoint was published with")


def _files(directory: Path, manifest: bytes) -> dict[str, Any]:
    """What the manifest says of each file. Without its hash it can be anything."""
    try:
        described = json.loads(manifest)
        version, files = described["format"], dict[str, Any](described["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenCheckpoint(f"{directory}: {_MANIFEST} is not a checkpoint's manifest; give another one") from error
    if version != _FORMAT:
        raise BrokenCheckpoint(f"{directory} has format {version}, this trainer reads {_FORMAT}")
    if set(files) != set(_FILES):
        raise BrokenCheckpoint(f"{directory}: {_MANIFEST} names {sorted(files)}, a checkpoint has {sorted(_FILES)}")
    return files


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # Python writes floats so that they read back as the same bits.
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
