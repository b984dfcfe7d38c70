"""Measures parts of the model: attention, its bare matrix products, the head, cost by length, parity with stock."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM, LongformerSelfAttention

from benchmarks.report import Line, median
from benchmarks.timing import Act, Effort, interleave, won
from benchmarks.trainer import baseline
from benchmarks.trainer.baseline import HIDDEN, apart, must_agree
from trainer.attention import module as attention
from trainer.attention.blocks import Blocks, Mask
from trainer.attention.module import WindowedSelfAttention


def attention_lines(effort: Effort) -> list[Line]:
    """Forward and backward of the module, against stock's and against the same matrix products with nothing around them."""
    stock, ours = modules(baseline.config(1))
    lines: list[Line] = []
    for rows, length in ((1, effort.long), (8, 512)):
        hidden = torch.randn(rows, length, HIDDEN)
        proof = must_agree("attention", _modules_apart(stock, ours, hidden), 1e-4)
        acts = {
            "stock": lambda hidden=hidden: forward_backward(stock, hidden),
            "ours": lambda hidden=hidden: forward_backward(ours, hidden),
            "products": _products(rows, length),
        }
        times = interleave(effort.cheap_turns, acts)
        size = f"{rows}×{length}"
        lines.append(
            won(
                f"attention forward + backward, {size}",
                times["ours"],
                times["stock"],
                wanted=4,
                note=f"target: 4× stock, dropout 0.1 on both; without dropout {proof}",
            )
        )
        lines.append(
            won(
                f"attention over its bare matrix products, {size}",
                times["ours"],
                times["products"],
                wanted=1 / 1.3,
                note="target: within 1.3×; the same products of the same blocks, recomputed scores among them",
            )
        )
    return lines


def head_line(effort: Effort) -> Line:
    network: Any = LongformerForMaskedLM(baseline.config(1))
    step = baseline.batch(4, 512)
    labels = baseline.dense_labels(step).flatten()
    hidden = torch.randn(4, 512, HIDDEN, requires_grad=True)

    def stock() -> tuple[torch.Tensor, torch.Tensor]:
        return _gradient(cross_entropy(network.lm_head(hidden).flatten(0, 1), labels), hidden)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = hidden.flatten(0, 1).index_select(0, step.label_positions_M)
        loss = cross_entropy(network.lm_head(chosen).float(), step.labels_M, reduction="sum") / step.num_labels
        return _gradient(loss, hidden)

    proof = must_agree("head", max(apart(a, b) for a, b in zip(ours(), stock(), strict=True)), 1e-4)
    times = interleave(effort.turns, {"stock": stock, "ours": ours})
    return won(
        "language-modelling head, 4×512", times["ours"], times["stock"], wanted=6, note=f"target: 6×; loss and gradient: {proof}"
    )  # fmt: skip


def length_line(effort: Effort) -> Line:
    """One layer, forward and backward: what a token costs does not depend on how many there are."""
    network: Any = LongformerForMaskedLM(baseline.config(1))
    attention.install(network, "cpu")
    encoder = network.longformer.encoder.train()
    lengths = sorted({512, effort.long, 4 * effort.long})

    def act(length: int) -> Act:
        hidden = torch.randn(max(1, 4096 // length), length, HIDDEN, requires_grad=True)
        mask = torch.zeros(hidden.shape[:2])
        return lambda: encoder(hidden, mask, return_dict=True)[0].sum().backward()

    times = interleave(effort.turns, {str(length): act(length) for length in lengths})
    costs = {n: median(times[str(n)]) / (max(1, 4096 // n) * n) * 1e6 for n in lengths}
    told = ", ".join(f"{length}: {cost:.1f}" for length, cost in costs.items())
    return Line(
        f"cost per token, one layer, 512 … {lengths[-1]} tokens",
        max(costs.values()),
        "µs",
        target=1.15 * costs[512],
        baseline=costs[512],
        note=f"target: the dearest length within 15 % of 512; µs a token by length: {told}",
    )


def parity_line() -> Line:
    config = baseline.config(1, hidden_size=64, num_attention_heads=2, attention_probs_dropout_prob=0.0)
    stock, ours = modules(config)
    worst = 0.0
    for length in (512, 1024, 2048, 4096):
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in (stock, ours):
            hidden = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
            mask = torch.zeros(1, length)
            mask[0, [0, 77]], mask[0, -length // 5 :] = 1, -1
            out = module(hidden, mask, mask < 0, mask > 0, True)[0]
            found.append((out.detach(), _gradient(out.square().sum(), hidden)[1]))
        worst = max(worst, *(apart(b, a) for a, b in zip(*found, strict=True)))
    note = "outputs and the input's gradient, relative to the largest; tests compare every gradient"
    return Line(
        "parity with stock, fp32, 512 … 4096, padding and globals", worst, "relative", target=1e-5, note=note
    )  # fmt: skip


def modules(config: Any) -> tuple[Any, WindowedSelfAttention]:
    """Stock's self-attention and ours, with the same weights."""
    stock: Any = LongformerSelfAttention(config, 0)
    return stock, WindowedSelfAttention.adopt(copy.deepcopy(stock))


def forward_backward(module: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's output and the gradient of hidden, B×L×E each; nothing is masked."""
    hidden = hidden.detach().requires_grad_()
    mask = torch.zeros(hidden.shape[:2])
    out = module(hidden, mask, mask < 0, mask > 0, False)[0]
    return out.detach(), _gradient(out.sum(), hidden)[1]


def _modules_apart(stock: Any, ours: Any, hidden: torch.Tensor) -> float:
    theirs, mine = (forward_backward(module.eval(), hidden) for module in (stock, ours))
    for module in (stock, ours):
        module.train()
    return max(apart(a, b) for a, b in zip(mine, theirs, strict=True))


def _gradient(loss: torch.Tensor, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf.grad = None
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def _products(rows: int, length: int) -> Act:
    """Three projections and their six gradient products, and the blocks' two products forward and five backward."""
    heads, width = 12, HIDDEN // 12
    x, weight = torch.randn(rows * length, HIDDEN), torch.randn(HIDDEN, HIDDEN)
    q, k = (torch.randn(rows, heads, length, width) for _ in range(2))
    total = torch.zeros(heads, length, width)
    groups = [(row, blocks) for row in range(rows) for _, blocks in Blocks(q[:1], 256, Mask()).groups()]

    def act() -> None:
        for _ in range(6):
            torch.mm(x, weight)
        for _ in range(3):
            torch.mm(x.T, x)
        for row, blocks in groups:
            for block in blocks:
                queries, keys = q[row, :, block.start : block.end], k[row, :, block.low : block.high]
                scores = torch.empty(0)
                for _ in range(3):
                    scores = torch.bmm(queries, keys.mT)
                for _ in range(2):
                    torch.bmm(scores, keys)
                for _ in range(2):
                    total[:, block.low : block.high].baddbmm_(scores.mT, queries)

    return act
