"""What differs between devices: which one a rank takes, how ranks meet, which cores they keep to, how weights change."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.conftest import Ranks
from trainer import device, dist_env
from trainer.device import Device
from trainer.dist_env import Place
from trainer.errors import BadInput
from trainer.optimizer import Optimizer
from trainer.spec.config import RunConfig

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]
CPU = Device("cpu", torch.device("cpu"), Place(0, 0, 1))


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process group was asked for; accelerators that are not there answer."""
    asked: dict[str, Any] = {}
    card = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 4, set_device=lambda index: asked.update(card=index)
    )
    # torch knows no device npu unless somebody brings one.
    changed = {"get_device_module": lambda _: card, "device": lambda *parts: parts}
    monkeypatch.setattr(device, "torch", types.SimpleNamespace(**vars(torch) | changed))
    monkeypatch.setattr(device.importlib, "import_module", lambda name: asked.update(imported=name))
    monkeypatch.setattr(device.dist, "init_process_group", lambda *args, **options: asked.update(options, backend=args))
    return asked


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("npu", "hccl"), ("cpu", "gloo")])
@pytest.mark.parametrize("rendezvous", [None, "file:///d/rendezvous"])
def test_ranks_meet_by_the_devices_backend(
    met: dict[str, Any], spec: Spec, kind: str, backend: str, rendezvous: str | None
) -> None:
    config = RunConfig.model_validate(spec(device_type=kind, rendezvous=rendezvous, cpu_threads=None))
    taken = device.join(config, Place(rank=5, local_rank=1, world_size=8, local_world_size=4))
    assert met["backend"] == (backend,)
    assert (met["rank"], met["world_size"]) == (5, 8)
    assert met["init_method"] == (rendezvous or "env://")
    assert met.get("card") == (None if kind == "cpu" else 1)
    assert met.get("imported") == ("torch_npu" if kind == "npu" else None)
    assert taken.torch_device == (("cpu",) if kind == "cpu" else (kind, 1))


@pytest.mark.usefixtures("met")
def test_a_card_that_is_not_there_is_told(spec: Spec) -> None:
    config = RunConfig.model_validate(spec(device_type="cuda"))
    with pytest.raises(BadInput, match="rank 7 needs cuda device 7, and this host shows 4"):
        device.join(config, Place(7, 7, 8, 8))


def test_an_npu_without_its_software_is_told(spec: Spec) -> None:
    with pytest.raises(BadInput, match="device_type npu needs torch_npu and CANN on this host: No module named"):
        device.join(RunConfig.model_validate(spec(device_type="npu")), Place(0, 0, 1))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Place(0, 0, 1, 1)),
        ({"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, Place(9, 1, 16, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 1, 2, 2)),
    ],
)
def test_the_place_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Place
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dist_env.here() == expected


@given(cores=st.sets(st.integers(0, 300), min_size=1, max_size=64), ranks=st.integers(1, 16))
def test_shares_of_cores_are_equal_and_apart(cores: set[int], ranks: int) -> None:
    shares = [dist_env.share_of_cores(cores, Place(rank, rank, ranks, ranks)) for rank in range(ranks)]
    if len(cores) < ranks:
        assert all(share == cores for share in shares)
        return
    assert {len(share) for share in shares} == {len(cores) // ranks}
    together = [core for share in shares for core in sorted(share)]
    assert together == sorted(set(together)), "ascending over the ranks, none twice"
    assert set(together) <= cores


def note_cores(directory: Path) -> None:
    """Called in a rank before it begins: where it trains, it tells its cores and those of a process it starts."""
    from trainer import loop

    run = loop.run

    def noted(*args: Any) -> None:
        child = subprocess.check_output([sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"])
        cores = [sorted(os.sched_getaffinity(0)), json.loads(child)]
        (directory / f"r{os.environ['RANK']}.cores").write_text(json.dumps(cores))
        run(*args)

    loop.run = noted


def test_ranks_keep_to_their_cores(forked: Callable[..., Ranks], spec: Spec, tmp_path: Path) -> None:
    def cores(name: str, **options: Any) -> list[list[int]]:
        config = spec(max_steps=1, do_eval=False, **options)
        run = forked(Ranks(tmp_path / name, config, 2, start=False), "tests.trainer.test_device:note_cores")
        told = [json.loads((run.directory / f"r{rank}.cores").read_text()) for rank in range(2)]
        assert all(own == child for own, child in told)
        return [own for own, _ in told]

    allowed = sorted(os.sched_getaffinity(0))
    assert cores("free", cpu_affinity=False) == [allowed, allowed]
    half = len(allowed) // 2
    assert cores("bound") == ([allowed[:half], allowed[half : 2 * half]] if half else [allowed, allowed])


class Two(torch.nn.Module):
    """A weight that is decayed, and a bias that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(self.linear.weight)
        torch.nn.init.ones_(self.linear.bias)


@pytest.mark.parametrize(("max_norm", "expected"), [(0.5, 0.5), (100.0, 5.0), (0.0, 5.0)])
def test_gradients_are_clipped_to_their_norm(spec: Spec, max_norm: float, expected: float) -> None:
    module = Two()
    optimizer = Optimizer(module, RunConfig.model_validate(spec(max_grad_norm=max_norm)), CPU)
    module.linear.weight.grad, module.linear.bias.grad = torch.zeros(2, 3), torch.tensor([3.0, 4.0])
    assert optimizer.clip() == pytest.approx(5.0)
    assert float(module.linear.bias.grad.norm()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adamw_torch_npu_fused"])
def test_only_matrices_are_decayed(spec: Spec, optim: str) -> None:
    module = Two()
    optimizer = Optimizer(module, RunConfig.model_validate(spec(weight_decay=0.1, optim=optim)), CPU)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    assert torch.allclose(module.linear.weight, torch.full((2, 3), 1 - 0.5 * 0.1))
    assert torch.equal(module.linear.bias, torch.ones(2))
    assert optimizer.rate == 0.5
    assert module.linear.weight.grad is None
    assert bool(optimizer.adamw.param_groups[0]["fused"]) == (optim != "adamw_torch")


def test_a_frozen_weight_is_left_alone(spec: Spec) -> None:
    module = Two()
    module.linear.bias.requires_grad_(False)
    optimizer = Optimizer(module, RunConfig.model_validate(spec(weight_decay=0.1)), CPU)
    assert optimizer.parameters == [module.linear.weight]
