"""Owns the presets: named, complete training configs. Must not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.spec.config import MODEL_FIELDS, DeviceType, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A training config but for the files only the submitter can name, with the devices it is meant for."""

    name: str
    title: str
    description: str
    num_devices: int
    device_type: DeviceType
    train: Mapping[str, Any]
    needs: tuple[str, ...]


def resolve(preset: Preset | str | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """A preset with overrides laid over it, or the overrides alone.

    An override that says which model to train replaces whichever way the preset says it.
    Raises pydantic.ValidationError for a spec that does not hold, KeyError for a preset that does not exist.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        values |= (PRESETS[preset] if isinstance(preset, str) else preset).train
    if any(overrides.get(name) is not None for name in MODEL_FIELDS):
        values = {name: value for name, value in values.items() if name not in MODEL_FIELDS}
    if overrides.get("do_eval") is False:
        values.pop("eval_steps", None)
    return TrainConfig.model_validate(values | dict(overrides))


# Ascend ModelZoo, PyTorch/built-in/nlp/Longformer_for_PyTorch: the values of its three scripts.
_RECIPE: dict[str, Any] = {
    "model_name_or_path": "allenai/longformer-base-4096",
    "hidden_act": "gelu_python",
    "max_seq_length": 512,
    "line_by_line": True,
    "pad_to_max_length": True,
    "mlm_probability": 0.15,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 5e-5,
    "optim": "adamw_torch_npu_fused",
    "do_eval": True,
    "save_steps": 50_000,
    "dataloader_num_workers": 16,
    "dataloader_pin_memory": True,
}

_DEMO: dict[str, Any] = {
    "from_scratch": {
        "num_hidden_layers": 3,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "attention_window": 32,
        "max_position_embeddings": 130,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # Larger than BERT's 0.02: at this width it is what gets the loss off its first plateau within minutes.
        "initializer_range": 0.05,
    },
    "max_seq_length": 128,
    "mlm_probability": 0.15,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 3e-3,
    "adam_beta2": 0.98,
    "warmup_ratio": 0.05,
    "lr_scheduler_type": "linear",
    "logging_steps": 5,
    "eval_steps": 160,
    "save_steps": 160,
}

_RECIPE_NEEDS = ("tokenizer_name", "train_file", "validation_file")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "train_full_1p",
            "Full training, 1 device",
            "Longformer-base, masked language modelling for 3 epochs with evaluation, on one NPU.",
            num_devices=1,
            device_type="npu",
            train=_RECIPE,
            needs=_RECIPE_NEEDS,
        ),
        Preset(
            "train_full_8p",
            "Full training, 8 devices",
            "Longformer-base, masked language modelling for 3 epochs with evaluation, on eight NPUs.",
            num_devices=8,
            device_type="npu",
            train=_RECIPE,
            needs=_RECIPE_NEEDS,
        ),
        Preset(
            "train_performance_8p",
            "Performance, 8 devices",
            "One epoch without evaluation on eight NPUs, to measure throughput.",
            num_devices=8,
            device_type="npu",
            train=_RECIPE | {"num_train_epochs": 1.0, "do_eval": False},
            needs=("tokenizer_name", "train_file"),
        ),
        Preset(
            "demo",
            "Demo, 2 CPU slots",
            "A small Longformer from random weights, whose window is shorter than its sequences; minutes on two cores.",
            num_devices=2,
            device_type="cpu",
            train=_DEMO,
            needs=_RECIPE_NEEDS,
        ),
    )
}
