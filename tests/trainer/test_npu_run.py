"""Whole runs on an NPU that is a stand-in: the trainer's own choices of device, backend, optimizer and loss scaling."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import npu_stand_in
from tests.trainer.conftest import WITH_DROPOUT, Ranks

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]
STAND_IN = f"{npu_stand_in.__name__}:install"
# The stand-in has no page-locked memory.
NPU = {
    "device_type": "npu",
    "optim": "adamw_torch_npu_fused",
    "line_by_line": True,
    "max_seq_length": 64,
    "dataloader_pin_memory": False,
}


@pytest.fixture
def train(spec: Spec, forked: Callable[..., Ranks], tmp_path: Path) -> Callable[..., Ranks]:
    def run(name: str, world_size: int = 1, **options: Any) -> Ranks:
        config = spec(**NPU | options)
        before = STAND_IN if config["device_type"] == "npu" else None
        return forked(Ranks(tmp_path / name, config, world_size, start=False), before)

    return run


def shapes(ranks: Ranks, *, training: bool) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (ranks.directory / "shapes.jsonl").read_text().splitlines()]
    return [line for line in lines if line["training"] == training]


def test_a_run_is_that_of_a_cpu(train: Callable[..., Ranks]) -> None:
    options = {"max_steps": 6, "weight_decay": 0.1, "adam_epsilon": 1e-6}
    npu, cpu = train("npu", **options), train("cpu", device_type="cpu", optim="adamw_torch", **options)
    assert "npu attention on npu" in npu.log()
    for name in ("loss", "eval_loss", "grad_norm", "masked_rate"):
        assert npu.series(name) == pytest.approx(cpu.series(name), rel=1e-4), name
    assert set(npu.series("memory_bytes").values()) == {123_456}
    assert npu.results()["device_type"] == "npu"


@pytest.mark.parametrize("precision", [{}, {"fp16": True}, {"bf16": True}])
def test_a_run_resumes_bitwise_through_the_fused_optimizer(train: Callable[..., Ranks], precision: Any) -> None:
    options = {"from_scratch": WITH_DROPOUT, "max_steps": 7, "save_steps": 4, "do_eval": False} | precision
    whole = train("whole", **options)
    line = whole.lines("checkpoint")[0]
    state = json.loads((Path(line["dir"]) / "state.json").read_text())
    assert {numbers["step"] for numbers in state["optimizer"].values()} == {4 - skipped(state)}
    reference = {"dir": line["dir"], "manifest_sha256": line["manifest_sha256"]}
    resumed = train("resumed", resume_from_checkpoint=reference, **options)
    losses = whole.series("loss")
    assert resumed.series("loss") == {step: losses[step] for step in (5, 6, 7)}
    assert resumed.weights() == whole.weights()


def skipped(state: dict[str, Any]) -> int:
    """Steps left out because the gradient overflowed at the first loss scales: each halved the scale."""
    scaler = state["state"]["scaler"]
    if not scaler:
        return 0
    assert scaler["dynamic"], "it is torch_npu's"
    halvings = round(2**16 / scaler["scale"]).bit_length() - 1
    assert scaler["_growth_tracker"] == 4 - halvings
    return halvings


def test_two_ranks_meet_by_hccl(train: Callable[..., Ranks]) -> None:
    two = train("two", 2, per_device_train_batch_size=2, max_steps=4)
    one = train("one", max_steps=4)
    chosen = json.loads((two.directory / "chosen.json").read_text())
    assert chosen["backend"] == "hccl"
    assert chosen["device"] == f"npu:{chosen['set_device']}"
    assert two.series("loss") == pytest.approx(one.series("loss"), rel=1e-4)


@pytest.mark.parametrize(
    "layout", [{"packing": True}, {"pad_to_max_length": True}, {}, {"packing": True, "masking": "ngram"}]
)
def test_shapes_are_the_same_from_step_to_step(train: Callable[..., Ranks], layout: dict[str, Any]) -> None:
    """More than a pass, whose last step is not full."""
    ranks = train("run", **{"max_steps": -1, "num_train_epochs": 1.3, "per_device_train_batch_size": 16} | layout)
    assert ranks.results()["epochs"] > 1
    for training in (True, False):
        (only,) = shapes(ranks, training=training)
        ids, positions, segments, at, labels = only["batch"]
        assert ids == positions == segments == [16 if training else 8, 64]
        assert at == labels


def test_lengths_that_are_grouped_are_few(train: Callable[..., Ranks]) -> None:
    ranks = train("run", group_by_length=True, max_steps=-1, num_train_epochs=1)
    lengths = [shape["batch"][0][1] for shape in shapes(ranks, training=True)]
    assert all(length % 8 == 0 for length in lengths)
    assert len(set(lengths)) == len(lengths) <= 8
