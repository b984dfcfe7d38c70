"""The NPU path through an emulator of the documented operator: the same results as stock. No card was involved."""

import copy
import sys
from typing import Any

import pytest
import torch

from tests.trainer import npu_emulator
from tests.trainer.attention.test_module import modules, run, signs, worst
from trainer.attention import banded, npu
from trainer.attention import module as attention
from trainer.attention.module import WindowedSelfAttention


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    npu_emulator.calls.clear()
    monkeypatch.setitem(sys.modules, "torch_npu", npu_emulator)
    return npu_emulator


@pytest.mark.parametrize(
    ("length", "mode"),
    [(32, "explicit"), (29, "explicit"), (33, "band"), (100, "band"), (128, "band")],
)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("num_global", [0, 3])
def test_outputs_and_gradients_are_stocks(
    emulator: Any, length: int, mode: str, padding: bool, num_global: int
) -> None:
    stock, ours = modules(16, 2, 32)
    ours = WindowedSelfAttention.adopt(ours, npu.attend)
    hidden = torch.randn(3, length, 16, generator=torch.Generator().manual_seed(1))
    mask = signs(3, length, padding=padding, num_global=num_global)
    ours.ends = attention._ends((mask >= 0).long())
    theirs = run(stock, hidden, mask, multiple=32)
    assert worst(run(ours, hidden, mask), theirs, floor_share=1e-2) <= 1e-5
    layouts = [call["input_layout"] for call in emulator.calls]
    assert layouts == {"explicit": ["BNSD"], "band": ["TND", "BNSD"] if num_global else ["TND"]}[mode]


@pytest.mark.parametrize(("length", "mode"), [(512, "explicit"), (1024, "band"), (2048, "band"), (4096, "band")])
@pytest.mark.parametrize("num_global", [0, 3])
def test_parity_at_the_models_window_and_lengths(emulator: Any, length: int, mode: str, num_global: int) -> None:
    """With padding; heads are few and small, because the emulator looks at every pair of tokens."""
    stock, ours = modules(16, 2, 512)
    ours = WindowedSelfAttention.adopt(ours, npu.attend)
    hidden = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(length))
    mask = signs(1, length, padding=True, num_global=num_global)
    ours.ends = attention._ends((mask >= 0).long())
    assert worst(run(ours, hidden, mask), run(stock, hidden, mask), floor_share=1e-2) <= 1e-5
    layouts = [call["input_layout"] for call in emulator.calls]
    assert layouts == {"explicit": ["BNSD"], "band": ["TND", "BNSD"] if num_global else ["TND"]}[mode]


def test_packed_documents_do_not_see_each_other() -> None:
    _, banded = modules(16, 2, 16)
    ours = WindowedSelfAttention.adopt(copy.deepcopy(banded), npu.attend)
    hidden = torch.randn(2, 70, 16)
    segments = torch.tensor([[1] * 20 + [2] * 41 + [0] * 9, [1] * 70])
    mask = (segments > 0).long() - 1
    for module in (banded, ours):
        module.segments_BL, module.ends = segments, attention._ends(segments)
    assert worst(run(ours, hidden, mask), run(banded, hidden, mask), floor_share=1e-2) <= 1e-5


def test_tensor_shapes_do_not_depend_on_where_documents_end(emulator: Any) -> None:
    _, module = modules(16, 2, 16)
    ours = WindowedSelfAttention.adopt(module, npu.attend)
    for cut in (11, 30):
        segments = torch.tensor([[1] * cut + [2] * (60 - cut)])
        ours.segments_BL, ours.ends = segments, attention._ends(segments)
        run(ours, torch.randn(1, 60, 16), torch.zeros(1, 60))
    first, second = emulator.calls
    assert first["atten_mask"].shape == second["atten_mask"].shape == (2048, 2048)
    assert (first["actual_seq_qlen"], second["actual_seq_qlen"]) == ([11, 60], [30, 60])


def test_many_short_documents_go_in_several_calls(emulator: Any) -> None:
    """1,024 parts are what one call takes; a batch of short lines has more."""
    _, banded = modules(8, 2, 8)
    ours = WindowedSelfAttention.adopt(copy.deepcopy(banded), npu.attend)
    segments = torch.arange(4200).div(2, rounding_mode="floor").reshape(2, 2100) + 1
    hidden = torch.randn(2, 2100, 8)
    for module in (banded, ours):
        module.segments_BL, module.ends = segments, attention._ends(segments)
    mask = torch.zeros(2, 2100)
    assert worst(run(ours, hidden, mask), run(banded, hidden, mask), floor_share=1e-2) <= 1e-5
    assert [len(call["actual_seq_qlen"]) for call in emulator.calls] == [1024, 1024, 52]


@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("length", [8, 21])
def test_gradients_under_dropout_are_those_of_the_function(emulator: Any, length: int, num_global: int) -> None:
    """Forward's mask comes back in backward by its seed, offset and length: in both calls, with one softmax."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(2, 2, length, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
    )
    at = torch.tensor([[1, 6], [4, 0]]) if num_global else None
    hidden = torch.zeros(2, length, dtype=torch.bool)
    if at is not None:
        hidden.scatter_(1, at, True)
    mask = banded.Mask(hidden if num_global else None, at)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        # The card's generator is seeded before each step: the same step draws the same.
        torch.manual_seed(5)
        return npu.attend(*tensors, 4, mask, banded.Dropout(0.3, seed=0))  # pyright: ignore[reportCallIssue]

    assert torch.autograd.gradcheck(function, (q, k, v), fast_mode=True)
    assert all(call["keep_prob"] == 0.7 for call in emulator.calls)
    torch.manual_seed(6)
    other = npu.attend(q, k, v, 4, mask, banded.Dropout(0.3, seed=0))
    assert not torch.equal(other, function(q, k, v))


@pytest.mark.parametrize("length", [32, 96])
def test_dropout_keeps_the_mean(length: int) -> None:
    q = k = torch.zeros(4, 4, length, 8)
    kept = npu.attend(q, k, torch.ones_like(q), 16, banded.Mask(), banded.Dropout(0.25, seed=0))
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(kept.std()) > 0.01
    assert torch.allclose(npu.attend(q, k, torch.ones_like(q), 16, banded.Mask()), torch.ones_like(q))


def test_a_row_of_padding_alone_spoils_no_gradient() -> None:
    """The last step of a pass is filled with empty rows; what the operator makes of rows without keys is unknown."""
    _, module = modules(16, 2, 32)
    ours = WindowedSelfAttention.adopt(module, npu.attend)
    mask = torch.zeros(3, 20)
    mask[1] = mask[2, 15:] = -1
    ours.ends = attention._ends((mask >= 0).long())
    found = run(ours, torch.randn(3, 20, 16), mask)
    assert all(torch.isfinite(x).all() for x in found.values())
    assert not found["hidden"][1].any()


def test_the_emulator_ignores_a_band_without_a_mask() -> None:
    q = torch.randn(1, 1, 40, 4)
    options = {"head_num": 1, "input_layout": "BNSD", "scale": 1.0, "keep_prob": 1.0, "sparse_mode": 4}
    everything = npu_emulator.npu_fusion_attention(q, q, q, **options, pre_tockens=2, next_tockens=2)[0]
    assert torch.allclose(everything, (q @ q.mT).softmax(-1) @ q)


def test_options_are_named_as_the_wheel_names_them(emulator: Any) -> None:
    call = npu._Call(heads=2, reach=8, keep=1.0, ends=(10,))
    names = set(emulator.SIGNATURES["npu_fusion_attention"]["args"])
    assert set(call.band(torch.device("cpu"))) <= names
    assert set(call.globals(torch.zeros(1, dtype=torch.bool))) <= names
    grad = emulator.SIGNATURES["npu_fusion_attention_grad"]
    renamed = npu._for_gradient(call.band(torch.device("cpu")), [torch.empty(0)] * 3, (0, 0, 0))
    assert set(renamed) <= {*grad["args"], *grad["kwonly"]}
    assert "pre_tokens" not in names, "v2's spelling"
