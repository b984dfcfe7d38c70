"""Owns how gradients become weights: AdamW, what it decays, clipping, and loss scaling under fp16."""

import math
from typing import Any

import torch
from torch import nn

from trainer.device import Device
from trainer.spec.config import RunConfig


class Optimizer:
    """AdamW over a module's trained weights, in the device's fastest form."""

    def __init__(self, module: nn.Module, config: RunConfig, device: Device) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.adamw = device.adamw(_decay_groups(self.parameters, config.weight_decay), config)
        self._scaler = device.scaler(config)
        self._max_norm = config.max_grad_norm or math.inf
        # NpuFusedAdamW keeps all gradients as one tensor, and refuses to let go of it.
        self._keeps_gradients = hasattr(self.adamw, "is_fused_optimizer")

    @property
    def rate(self) -> float:
        return self.adamw.param_groups[0]["lr"]

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss to those that are there."""
        self._scaler.scale(loss).backward()

    def clip(self) -> float:
        """Clips the gradients to config.max_grad_norm. Returns their norm before."""
        self._scaler.unscale_(self.adamw)
        return float(nn.utils.clip_grad_norm_(self.parameters, self._max_norm))

    def step(self, rate: float) -> None:
        """Changes the weights and drops the gradients. Under fp16 a step with an infinite gradient is left out."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self._scaler.step(self.adamw)
        self._scaler.update()
        self.adamw.zero_grad(set_to_none=not self._keeps_gradients)

    def scaling(self) -> dict[str, Any]:
        """The loss scale and its history, for a checkpoint: JSON, {} but for fp16."""
        return self._scaler.state_dict()

    def restore_scaling(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Biases and layer norms, which have one dimension, are not decayed."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
