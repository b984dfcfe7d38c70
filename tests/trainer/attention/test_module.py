"""The banded attention against stock Longformer's: outputs, every gradient, any length, window and mask."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import (
    LongformerForMaskedLM,
    LongformerLayer,
    LongformerSelfAttention,
)

from trainer.attention import banded
from trainer.attention import module as attention
from trainer.attention.module import WindowedSelfAttention

MASKED, LOCAL, GLOBAL = -1, 0, 1


def modules(hidden: int, heads: int, window: int, **options: Any) -> tuple[Any, Any]:
    """A stock module and a banded one with the same weights."""
    torch.manual_seed(1)
    config = LongformerConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=1,
        attention_window=[window],
        attention_probs_dropout_prob=options.get("dropout", 0.0),
    )
    stock: Any = LongformerSelfAttention(config, 0)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3 / hidden**0.25)
    return stock, WindowedSelfAttention.adopt(copy.deepcopy(stock))


def run(module: Any, hidden: torch.Tensor, mask: torch.Tensor, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Output and gradients, by name. Stock wants whole windows: it is padded as LongformerModel pads it."""
    length = hidden.shape[1]
    leaf = hidden.clone().requires_grad_()
    padding = -length % multiple
    states = torch.nn.functional.pad(leaf, (0, 0, 0, padding))
    signs = torch.nn.functional.pad(mask, (0, padding), value=MASKED).to(hidden.dtype)
    out = module(states, signs, signs < 0, signs > 0, bool((signs > 0).any()))[0][:, :length]
    # All positive: sums over tokens that cancel would measure rounding alone.
    weight = torch.rand(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    (out * weight).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    assert leaf.grad is not None
    return {"out": out.detach(), "hidden": leaf.grad} | {k: v.clone() for k, v in found.items()}


def worst(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *, floor_share: float = 1e-3) -> float:
    """The largest difference of any output or gradient, relative to that tensor's largest value.

    A key's bias shifts all scores of a query alike, so its gradient is 0 but for rounding; hence the scale is at
    least a share of the largest value of all.
    """
    assert set(ours) == set(theirs)
    floor = max(float(t.abs().max()) for t in theirs.values()) * floor_share
    return max(float((ours[k] - t).abs().max()) / max(float(t.abs().max()), floor) for k, t in theirs.items())


def signs(batch: int, length: int, *, padding: bool, num_global: int) -> torch.Tensor:
    mask = torch.full((batch, length), LOCAL)
    for row in range(batch):
        # Different numbers of global tokens in each sequence, some of them side by side.
        for number in range(max(1, num_global - row) if num_global else 0):
            mask[row, number * number * 7 % length] = GLOBAL
        if padding:
            mask[row, length - (row + 1) * length // 5 :] = MASKED
    return mask


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
@pytest.mark.parametrize(("padding", "num_global"), [(False, 0), (True, 0), (True, 3)])
def test_outputs_and_gradients_are_stocks(length: int, padding: bool, num_global: int) -> None:
    stock, ours = modules(64, 2, 512)
    batch = 2 if length < 4096 else 1
    hidden = torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(length))
    mask = signs(batch, length, padding=padding, num_global=num_global)
    assert worst(run(ours, hidden, mask), run(stock, hidden, mask)) <= 1e-5


@pytest.mark.parametrize(("padding", "num_global"), [(False, 0), (True, 3)])
def test_a_layer_of_the_models_real_width_is_stocks(padding: bool, num_global: int) -> None:
    """768 wide, 12 heads, window 512, and a length that is no multiple of it; each tensor by its own largest value.

    But for the keys' biases: they shift all scores of a query alike, which a softmax does not see, so their true
    gradient is 0 and what either side finds is rounding alone. It is held against the gradient of the queries' bias
    beside it: of the scores' two factors that is the one that does something.
    """
    torch.manual_seed(1)
    config = LongformerConfig(attention_window=[512] * 12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    stock: Any = LongformerLayer(config, 0)
    for parameter in stock.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    ours = copy.deepcopy(stock)
    ours.attention.self = WindowedSelfAttention.adopt(ours.attention.self)
    hidden = torch.randn(2, 700, 768, generator=torch.Generator().manual_seed(7))
    mask = signs(2, 700, padding=padding, num_global=num_global)
    theirs, mine = run(stock, hidden, mask, multiple=512), run(ours, hidden, mask)
    assert set(mine) == set(theirs)
    assert len(mine) == (24 if num_global else 18), "all there is of a layer"
    for name, expected in theirs.items():
        apart, scale = float((mine[name] - expected).abs().max()), float(expected.abs().max())
        if name.endswith(("key.bias", "key_global.bias")):
            beside = float(theirs[name.replace("key", "query")].abs().max())
            assert scale <= 1e-5 * beside, f"{name}: stock's own is rounding too"
            scale = beside
        assert apart <= 1e-5 * scale, name


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 150),
    reach=st.integers(2, 40),  # stock fails at 1
    heads=st.sampled_from([1, 2, 3]),
    padding=st.booleans(),
    num_global=st.integers(0, 4),
)
def test_any_shape(batch: int, length: int, reach: int, heads: int, padding: bool, num_global: int) -> None:
    stock, ours = (module.double() for module in modules(heads * 4, heads, 2 * reach))
    hidden = torch.randn(batch, length, heads * 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    mask = signs(batch, length, padding=padding, num_global=num_global)
    if bool((mask < 0).all(1).any()):
        return
    # Stock's softmax rounds to single precision on the way, so its doubles are only that exact.
    theirs = run(stock, hidden, mask, multiple=2 * reach)
    assert worst(run(ours, hidden, mask), theirs, floor_share=1e-2) <= 2e-5


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("masking", ["none", "padding", "globals", "segments"])
def test_gradients_are_those_of_the_function(rate: float, masking: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 2, 70, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    hidden = torch.zeros(2, 70, dtype=torch.bool)
    mask = banded.Mask()
    if masking == "padding":
        hidden[:, 66:] = True
        mask = banded.Mask(hidden)
    elif masking == "globals":
        hidden[0, [3, 40]] = hidden[1, 5] = True
        mask = banded.Mask(hidden, torch.tensor([[3, 40], [5, 0]]), torch.tensor([[False, False], [False, True]]))
    elif masking == "segments":
        mask = banded.Mask(segments_BL=torch.arange(70).div(23, rounding_mode="floor").expand(2, -1))
    dropout = banded.Dropout(rate, seed=11)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return banded.attend(*tensors, 5, mask, dropout)  # pyright: ignore[reportCallIssue]

    assert torch.autograd.gradcheck(function, (q, k, v), fast_mode=True)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    q, k = torch.zeros(1, 4, 2048, 8), torch.zeros(1, 4, 2048, 8)
    v = torch.ones(1, 4, 2048, 8)
    kept = banded.attend(q, k, v, 64, banded.Mask(), banded.Dropout(0.1, seed=5))
    # Each output is a mean of some 129 kept-or-dropped ones, 65,536 outputs for four heads share 264,192 draws each.
    assert float(kept.mean()) == pytest.approx(1.0, abs=2e-3)
    assert float(kept[:, :, 64:-64, 0].std()) == pytest.approx((0.1 / 0.9 / 129) ** 0.5, rel=0.1)
    # Were heads or blocks dropped alike, means over them would spread more than those of independent draws.
    inner = kept[:, :, 64:-64, 0].unflatten(2, (-1, 64)).mean((1, 2))
    assert float(inner.std()) == pytest.approx((0.1 / 0.9 / 129 / 4 / 30) ** 0.5, rel=0.5)
    again = banded.attend(q, k, v, 64, banded.Mask(), banded.Dropout(0.1, seed=5))
    other = banded.attend(q, k, v, 64, banded.Mask(), banded.Dropout(0.1, seed=6))
    assert torch.equal(kept, again)
    assert not torch.equal(kept, other)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=3),
    reach=st.integers(1, 40),
)
def test_packed_segments_are_as_if_alone(parts: list[list[int]], reach: int) -> None:
    """Rows of segments and padding, against each segment by itself: outputs and gradients."""
    length = max(map(sum, parts))
    padded = [[*row, length - sum(row)] for row in parts]
    numbers = [[*range(1, len(row)), 0] for row in padded]
    segments = torch.stack(
        [torch.tensor(n).repeat_interleave(torch.tensor(r)) for n, r in zip(numbers, padded, strict=True)]
    )
    generator = torch.Generator().manual_seed(length)
    q, k, v, weight = (
        torch.randn(len(parts), 2, length, 3, dtype=torch.float64, generator=generator) for _ in range(4)
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    seen = (segments > 0)[:, None, :, None]

    def gradients(out: torch.Tensor) -> list[torch.Tensor]:
        return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    hidden = segments == 0
    packed = banded.attend(q, k, v, reach, banded.Mask(hidden if bool(hidden.any()) else None, segments_BL=segments))
    alone = torch.zeros_like(packed)
    for row, lengths in enumerate(parts):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            part = (x[row : row + 1, :, start:end] for x in leaves)
            alone[row, :, start:end] = banded.attend(*part, reach, banded.Mask())[0]  # pyright: ignore[reportCallIssue]
    for ours, expected in zip(gradients(packed.where(seen, 0)), gradients(alone), strict=True):
        assert torch.allclose(ours, expected, atol=1e-12)


@pytest.fixture
def network() -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(2)
        config = LongformerConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            attention_window=8,
            max_position_embeddings=100,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
        )
        return LongformerForMaskedLM(config)

    return make


def test_a_patched_model_is_stock_to_whoever_saves_or_loads_it(network: Callable[[], Any], tmp_path: Any) -> None:
    stock = network()
    ours = copy.deepcopy(stock)
    attention.install(ours, "cpu")
    assert list(ours.state_dict()) == list(stock.state_dict())
    ids = torch.randint(3, 50, (2, 37))
    ours.eval()
    stock.eval()
    assert torch.allclose(ours(ids).logits, stock(ids).logits, atol=1e-5)
    ours.save_pretrained(tmp_path)
    loaded: Any = LongformerForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, stock(ids).logits)


def test_asking_for_attentions_falls_back_to_stock(network: Callable[[], Any]) -> None:
    stock = network().eval()
    ours = copy.deepcopy(stock)
    attention.install(ours, "cpu")
    ids = torch.randint(3, 50, (1, 16))
    theirs, mine = stock(ids, output_attentions=True), ours(ids, output_attentions=True)
    assert torch.equal(theirs.attentions[1], mine.attentions[1])
    assert torch.equal(theirs.logits, mine.logits)
