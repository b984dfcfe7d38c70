"""Owns the learning rate at a step: a pure function, so a resumed run has nothing to restore."""

import math

from trainer.spec.config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate for the step that follows `step` done ones: a linear warm-up, then config.lr_scheduler_type."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if config.lr_scheduler_type != "constant" and step < warmup:
        return config.learning_rate * step / max(1, warmup)
    done = (step - warmup) / max(1, total_steps - warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * max(0.0, 1 - done)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate
