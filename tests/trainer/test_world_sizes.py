"""The loss does not depend on how a global batch is split over ranks and accumulated batches: real ranks over gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from tests.trainer.conftest import SHAPE, Inputs, Ranks

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]
GLOBAL_BATCH = 32
# 80 lines of very different lengths: batches have very different numbers of labels, and the third step of a pass is half empty.
LINES, STEPS = 80, 4
WIDE = SHAPE | {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
CASES = [(ranks, accumulated) for ranks in (1, 2, 4, 8) for accumulated in (1, 2, 4)]


def always_fix_shapes(_directory: Path) -> None:
    """Called in a rank before it begins: it fills up labels and rows as an NPU wants them."""
    from trainer.device import Device

    Device.fixes_shapes = True  # pyright: ignore[reportAttributeAccessIssue]


def named(ranks: int, accumulated: int) -> str:
    return f"{ranks}x{accumulated}"


@pytest.fixture(scope="module")
def runs(inputs: Inputs, forked: Callable[..., Ranks], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """Every case, and one with filled up labels, trained on the same rows."""
    directory = tmp_path_factory.mktemp("world_sizes")
    text = directory / "train.txt"
    lines = inputs.train_file.read_text(encoding="utf-8").splitlines()
    text.write_text("".join(f"{line[: 20 + 7 * (i * i % 40)]}\n" for i, line in enumerate(lines[:LINES])))
    fixed = {
        "from_scratch": WIDE,
        "tokenizer_name": str(inputs.tokenizer),
        "train_file": str(text),
        "validation_file": str(inputs.validation_file),
        "line_by_line": True,
        "max_seq_length": 64,
        "max_steps": STEPS,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1000,
        # A smaller epsilon would blow up the rounding of gradients that are 0, as those of all keys' biases.
        "adam_epsilon": 1e-3,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "weight_decay": 0.1,
        "cpu_threads": 1,
        "cache_dir": str(directory / "tokens"),
    }

    def run(ranks: int, accumulated: int, name: str, before: str | None = None) -> Ranks:
        own = {
            "per_device_train_batch_size": GLOBAL_BATCH // (ranks * accumulated),
            "gradient_accumulation_steps": accumulated,
        }
        return forked(Ranks(directory / name, fixed | own, ranks, start=False), before)

    filled = run(2, 2, "filled", "tests.trainer.test_world_sizes:always_fix_shapes")
    return {named(*case): run(*case, named(*case)) for case in CASES} | {"filled": filled}


def weights(run: Ranks) -> dict[str, torch.Tensor]:
    return load(run.weights())


@pytest.mark.parametrize("case", [named(*case) for case in CASES[1:]] + ["filled"])
def test_losses_gradients_and_weights_are_those_of_one_rank(runs: dict[str, Ranks], case: str) -> None:
    one, other = runs["1x1"], runs[case]
    assert len(one.series("loss")) == STEPS
    for name in ("loss", "grad_norm", "eval_loss", "masked_rate", "learning_rate"):
        assert other.series(name) == pytest.approx(one.series(name), rel=1e-5), name
    assert other.results()["train_loss"] == pytest.approx(one.results()["train_loss"], rel=1e-5)
    expected = weights(one)
    for name, tensor in weights(other).items():
        # The biases of keys have no gradient but for rounding, and hardly leave 0.
        scale = max(1e-3, float(expected[name].abs().max()))
        assert float((tensor - expected[name]).abs().max()) <= 1e-5 * scale, name


def test_the_comparison_can_fail(runs: dict[str, Ranks]) -> None:
    """Weights have moved by far more than they may differ, and so had losses weighed each batch alike."""
    from trainer import model
    from trainer.data import tokenizer
    from trainer.spec.config import RunConfig

    one = runs["1x1"]
    config = RunConfig.model_validate_json((one.directory / "config.json").read_bytes())
    begun = model.build(config, tokenizer.load(Path(str(config.tokenizer_name)))).state_dict()
    ended = weights(one)
    moved = {n: float((t - begun[n]).abs().max() / t.abs().max()) for n, t in ended.items() if "_global" not in n}
    assert np.median(list(moved.values())) > 1e-2
    assert runs["filled"].results()["global_batch_size"] == GLOBAL_BATCH
    # The half empty step has fewer labels than the full ones; a mean of means would not see it.
    rates, losses = one.series("masked_rate"), one.series("loss")
    assert len({round(rate, 6) for rate in rates.values()}) == STEPS
    assert max(losses.values()) / min(losses.values()) > 1.01
