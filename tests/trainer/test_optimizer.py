"""Learning rates against those of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.optimization import get_scheduler

from trainer.schedule import learning_rate
from trainer.spec.config import TrainConfig

Spec = Callable[..., dict[str, Any]]
STEPS = 50


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
def test_rates_are_those_of_transformers(inputs: Any, kind: Any, warmup: int) -> None:
    config = TrainConfig(
        from_scratch=None,
        model_name_or_path="/m",
        train_file=str(inputs.train_file),
        do_eval=False,
        learning_rate=3e-4,
        lr_scheduler_type=kind,
        warmup_steps=warmup,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
    for step in range(STEPS):
        assert learning_rate(step, STEPS, config) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        optimizer.step()
        theirs.step()  # pyright: ignore[reportCallIssue]


def test_a_share_of_the_steps_is_the_warm_up() -> None:
    config = TrainConfig(model_name_or_path="/m", train_file="/t", do_eval=False, learning_rate=1.0, warmup_ratio=0.25)
    assert [learning_rate(step, 10, config) for step in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
