"""Dropout by seed: what is dropped, how much, and that backward drops the same."""

import pytest
import torch
from torch import nn

from trainer.attention import dropout
from trainer.attention.dropout import Dropout, SeededDropout, Stream


def dropped(values: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return SeededDropout(rate)(values)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_drops_its_share_and_scales_the_rest(rate: float, dtype: torch.dtype) -> None:
    out = dropped(torch.full((3, 100_000), 2.0, dtype=dtype), rate, seed=1)
    assert float((out == 0).double().mean()) == pytest.approx(rate, abs=0.005)
    assert torch.unique(out).tolist() == pytest.approx([0, 2 / (1 - rate)], rel=1e-2)


def test_backward_drops_what_forward_dropped() -> None:
    values = torch.randn(7, 51, 130, dtype=torch.float64, requires_grad=True)
    # Transposed, so neither values nor gradients lie in the order in which they are dropped.
    out = dropped(values.transpose(0, 1), 0.3, seed=2)
    weight = torch.randn(out.shape, dtype=torch.float64).transpose(1, 2).contiguous().transpose(1, 2)
    (out * weight).sum().backward()
    assert values.grad is not None
    scale = torch.where(out == 0, 0, Dropout(0.3, 0).scale)
    assert torch.allclose(values.grad, (scale * weight).transpose(0, 1))


def test_the_seed_decides() -> None:
    ones = torch.ones(500_000)
    assert torch.equal(dropped(ones, 0.1, seed=3), dropped(ones, 0.1, seed=3))
    assert not torch.equal(dropped(ones, 0.1, seed=3), dropped(ones, 0.1, seed=4))


def test_stretches_are_independent() -> None:
    """Of a thousand pairs of stretches, and of a stretch and itself moved by one, none agrees more than chance has it."""
    stream = Stream(Dropout(0.5, seed=5), 46, 10_000, torch.device("cpu"))
    kept = torch.empty(46, 10_000)
    for number, row in enumerate(kept):
        stream.write_kept(number, row)
    correlation = torch.corrcoef(torch.cat([kept, kept.roll(1, 1)]))
    correlation.fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.06


def test_it_replaces_torchs_on_a_cpu_only() -> None:
    def made() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2)), nn.Dropout(0.4))

    module, other = made(), made()
    dropout.install(module, "cpu")
    dropout.install(other, "cuda")
    assert [m.p for m in module.modules() if isinstance(m, SeededDropout)] == [0.2, 0.4]
    assert not any(isinstance(m, SeededDropout) for m in other.modules())
    assert list(module.state_dict()) == list(other.state_dict())
    values = torch.ones(10, 2)
    assert torch.equal(module.eval()[2](values), values)
