"""Owns results.json: what a finished run achieved, and exactly what it was made from."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

from trainer.data import sampler
from trainer.data.dataset import Sequences
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device
from trainer.metrics import Sums
from trainer.spec.config import RunConfig, TrainConfig

_LIBRARIES = ("torch_npu", "transformers", "tokenizers", "safetensors", "numpy", "longyard")


def collect(
    config: RunConfig,
    device: Device,
    sums: Sums,
    vocabulary: Vocabulary,
    texts: dict[str, Sequences],
    *,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """What results.json says. `texts` are the token sequences by the field that named their file."""
    versions = _versions()
    return {
        **sums.results(),
        "epochs": sums.step / steps_per_epoch,
        "global_batch_size": sampler.global_batch_size(config, device.place),
        "world_size": device.place.world_size,
        "device_type": device.type,
        "data_sha256": {field: text.content_sha256 for field, text in texts.items()},
        "tokenizer_sha256": vocabulary.digest,
        "config_sha256": config_sha256(config),
        "code_sha256": code_sha256(),
        "versions": versions,
        "torch_version": versions["torch"],
    }


def config_sha256(config: RunConfig) -> str:
    """Of what was asked for, without the facts of one launch."""
    spec = config.model_dump(mode="json", include=set(TrainConfig.model_fields))
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def code_sha256(root: Path = Path(__file__).parent) -> str:
    """Of the trainer's own sources: every .py file under root by its name there and its content."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    listing = [(name, hashlib.sha256((root / name).read_bytes()).hexdigest()) for name in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
