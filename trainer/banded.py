"""Owns attention in a sliding window by blocks: nothing of size L×window is kept between forward and backward.

Shapes: B sequences, H heads, L tokens, D head size, N = B·H; a block has C queries and K keys, G global keys come
first among them. Exact for any length and window; runs on every torch device, tuned for CPU caches.
"""
# ruff: noqa: N815

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

# Scores of this many bytes stay in a core's cache between the product that makes them and the one that uses them.
_SCORES_BYTES = 4 << 20
_LEVELS = 1 << 16


class Mask(NamedTuple):
    """Which keys a query may see beside its window; None where there is nothing to hide.

    `hidden_BL`: keys out of the window's reach, padding and global ones. `global_BG`: positions of the global keys,
    with `unused_BG` true where a sequence has fewer. `segments_BL`: queries see only keys of their own number; `ends`
    says where those segments, padding among them, end in the rows laid end to end.
    """

    hidden_BL: torch.Tensor | None = None
    global_BG: torch.Tensor | None = None
    unused_BG: torch.Tensor | None = None
    segments_BL: torch.Tensor | None = None
    ends: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Dropout:
    """Drops a key's share of a query's probability. The same seed drops the same ones."""

    rate: float
    seed: int

    @property
    def threshold(self) -> int:
        return round(self.rate * _LEVELS)

    @property
    def scale(self) -> float:
        return _LEVELS / (_LEVELS - self.threshold)


def attend(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    reach: int,
    mask: Mask,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """softmax(q·k) v over keys at most `reach` tokens away and the global ones; q is scaled already.

    Returns B×H×L×D of q's type. A query that may see no key gets an arbitrary mean: callers overwrite such rows.
    """
    return _Banded.apply(q_BHLD, k_BHLD, v_BHLD, reach, mask, dropout)  # pyright: ignore[reportReturnType]


class _Block(NamedTuple):
    """Queries [start, end) of some sequences and the keys [low, high) that at least one of them reaches."""

    number: int
    rows: slice
    heads: slice
    start: int
    end: int
    low: int
    high: int


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        q_BHLD: torch.Tensor,
        k_BHLD: torch.Tensor,
        v_BHLD: torch.Tensor,
        reach: int,
        mask: Mask,
        dropout: Dropout | None,
    ) -> torch.Tensor:
        shape = q_BHLD.shape
        q, k, v = (x.flatten(0, 1).contiguous() for x in (q_BHLD, k_BHLD, v_BHLD))
        out = torch.empty_like(q)
        with torch.autocast(q.device.type, enabled=False):
            walk = _Walk(q, k, shape[1], reach, mask, dropout)
            v_global = walk.take_global(v)
            for block in walk.blocks():
                probabilities = walk.probabilities(block)
                kept = walk.drop(block, probabilities)
                walk.mix(block, kept, v, v_global, out[block.heads, block.start : block.end])
        ctx.save_for_backward(q, k, v, *mask[:4])
        ctx.rest = shape, reach, dropout
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, grad_BHLD: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *mask = ctx.saved_tensors
        shape, reach, dropout = ctx.rest
        grad = grad_BHLD.to(q.dtype).flatten(0, 1).contiguous()
        with torch.autocast(q.device.type, enabled=False):
            walk = _Walk(q, k, shape[1], reach, Mask(*mask), dropout)
            dq, dk, dv = _gradients(walk, v, grad)
        return dq.view(shape), dk.view(shape), dv.view(shape), None, None, None


def _gradients(walk: "_Walk", v: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The probabilities are made again, block by block, from the same inputs and the same dropout seed."""
    q, k, num_global = walk.q, walk.k, walk.num_global
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    v_global = walk.take_global(v)
    dk_global = torch.zeros_like(walk.k_global) if walk.k_global is not None else None
    dv_global = torch.zeros_like(v_global) if v_global is not None else None
    for block in walk.blocks():
        own, keys = slice(block.start, block.end), slice(block.low, block.high)
        grad_block = grad[block.heads, own]
        probabilities = walk.probabilities(block)
        kept = walk.drop(block, probabilities, keep_input=True)
        dv[block.heads, keys].baddbmm_(kept[..., num_global:].mT, grad_block)
        slopes = walk.buffer(block, 1)
        torch.bmm(grad_block, v[block.heads, keys].mT, out=slopes[..., num_global:])
        if v_global is not None and dv_global is not None:
            dv_global[block.heads].baddbmm_(kept[..., :num_global].mT, grad_block)
            slopes[..., :num_global] = torch.bmm(grad_block, v_global[block.heads].mT)
        walk.drop_again(block, slopes)
        slopes = torch.ops.aten._softmax_backward_data(slopes, probabilities, -1, slopes.dtype)
        torch.bmm(slopes[..., num_global:], k[block.heads, keys], out=dq[block.heads, own])
        dk[block.heads, keys].baddbmm_(slopes[..., num_global:].mT, q[block.heads, own])
        if walk.k_global is not None and dk_global is not None:
            dq[block.heads, own].baddbmm_(slopes[..., :num_global], walk.k_global[block.heads])
            dk_global[block.heads].baddbmm_(slopes[..., :num_global].mT, q[block.heads, own])
    walk.give_global(dk, dk_global)
    walk.give_global(dv, dv_global)
    return dq, dk, dv


class _Walk:
    """One pass over the blocks, with the buffers that all of them share."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, heads: int, reach: int, mask: Mask, dropout: Dropout | None
    ) -> None:
        self.q, self.k, self.heads, self.reach, self.mask = q, k, heads, reach, mask
        self.dropout = dropout if dropout is not None and dropout.threshold > 0 else None
        self.num_global = 0 if mask.global_BG is None else mask.global_BG.shape[1]
        self.length = q.shape[1]
        self.block_length = min(self.length, max(64, min(128, reach // 2 // 16 * 16)))
        widest = self.num_global + min(self.length, self.block_length + 2 * reach)
        a_row = heads * self.block_length * widest * q.element_size()
        self.rows_at_once = max(1, _SCORES_BYTES // a_row) if q.device.type == "cpu" else q.shape[0] // heads
        self._buffers: dict[int, torch.Tensor] = {}
        self._kept: torch.Tensor | None = None
        self.k_global = self.take_global(k)

    def blocks(self) -> Iterator[_Block]:
        num_rows, number = self.q.shape[0] // self.heads, 0
        for first in range(0, num_rows, self.rows_at_once):
            rows = slice(first, min(num_rows, first + self.rows_at_once))
            heads = slice(rows.start * self.heads, rows.stop * self.heads)
            for start in range(0, self.length, self.block_length):
                end = min(self.length, start + self.block_length)
                low, high = max(0, start - self.reach), min(self.length, end + self.reach)
                yield _Block(number, rows, heads, start, end, low, high)
                number += 1

    def buffer(self, block: _Block, which: int) -> torch.Tensor:
        """Room for one block's scores, N×C×(G+K), written over by the next block."""
        shape = block.heads.stop - block.heads.start, block.end - block.start, self.num_global + block.high - block.low
        size = shape[0] * shape[1] * shape[2]
        held = self._buffers.get(which)
        if held is None or held.numel() < size:
            held = self._buffers[which] = torch.empty(size, dtype=self.q.dtype, device=self.q.device)
        return held[:size].view(shape)

    def probabilities(self, block: _Block) -> torch.Tensor:
        scores = self.buffer(block, 0)
        q = self.q[block.heads, block.start : block.end]
        local = scores[..., self.num_global :]
        torch.bmm(q, self.k[block.heads, block.low : block.high].mT, out=local)
        if self.k_global is not None:
            scores[..., : self.num_global] = torch.bmm(q, self.k_global[block.heads].mT)
        self._hide(block, scores, local)
        # Accumulated in single precision whatever the scores are, as in stock Longformer.
        return torch.softmax(scores, -1)

    def drop(self, block: _Block, probabilities: torch.Tensor, *, keep_input: bool = False) -> torch.Tensor:
        if self.dropout is None:
            return probabilities
        self._kept = _kept_share(self.dropout, block.number, probabilities)
        return probabilities * self._kept if keep_input else probabilities.mul_(self._kept)

    def drop_again(self, block: _Block, slopes: torch.Tensor) -> None:
        if self.dropout is not None:
            assert self._kept is not None
            slopes.mul_(self._kept)

    def mix(
        self, block: _Block, kept: torch.Tensor, v: torch.Tensor, v_global: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        torch.bmm(kept[..., self.num_global :], v[block.heads, block.low : block.high], out=out)
        if v_global is not None:
            out.baddbmm_(kept[..., : self.num_global], v_global[block.heads])

    def take_global(self, x: torch.Tensor) -> torch.Tensor | None:
        """The rows of N×L×D at the global positions, N×G×D."""
        index = self._global_index(x)
        return None if index is None else x.gather(1, index)

    def give_global(self, gradient: torch.Tensor, gradient_global: torch.Tensor | None) -> None:
        """Adds the gradients of the global keys to those of the tokens they are."""
        index = self._global_index(gradient)
        if index is not None and gradient_global is not None:
            gradient.scatter_add_(1, index, gradient_global)

    def _global_index(self, x: torch.Tensor) -> torch.Tensor | None:
        if self.mask.global_BG is None:
            return None
        index = self.mask.global_BG.repeat_interleave(self.heads, 0)
        return index.unsqueeze(-1).expand(-1, -1, x.shape[2])

    def _hide(self, block: _Block, scores: torch.Tensor, local: torch.Tensor) -> None:
        # Finite, so that a row in which everything is hidden gives numbers; nobody reads them.
        lowest = torch.finfo(scores.dtype).min
        rows, keys = block.end - block.start, block.high - block.low
        before = rows - 1 - (block.low - (block.start - self.reach))
        after = block.high - block.start - self.reach - 1
        if before > 0:
            shift = self.reach - (block.start - block.low)
            local[..., :before].add_(_corner(rows, before, shift, scores.dtype, scores.device))
        if after > 0:
            start = block.start - block.low + self.reach + 1
            local[..., keys - after :].add_(_far_corner(rows, after, keys - after - start, scores.dtype, scores.device))
        hidden = self._hidden_keys(block)
        if hidden is not None:
            _by_row(local, self.heads).masked_fill_(hidden, lowest)
        if self.mask.unused_BG is not None:
            unused = self.mask.unused_BG[block.rows, None, None, :]
            _by_row(scores[..., : self.num_global], self.heads).masked_fill_(unused, lowest)

    def _hidden_keys(self, block: _Block) -> torch.Tensor | None:
        """True where a key is hidden from a query: B×1×(1 or C)×K."""
        hidden = None
        if self.mask.hidden_BL is not None:
            hidden = self.mask.hidden_BL[block.rows, None, None, block.low : block.high]
        if self.mask.segments_BL is not None:
            segments = self.mask.segments_BL[block.rows]
            other = segments[:, block.start : block.end, None] != segments[:, None, block.low : block.high]
            hidden = other[:, None] if hidden is None else hidden | other[:, None]
        return hidden


def _kept_share(dropout: Dropout, number: int, like: torch.Tensor) -> torch.Tensor:
    """0 where a probability is dropped and 1 / (1 - rate) elsewhere: 16 random bits for each."""
    # Four of them to a 64-bit draw: the generator is most of what dropout costs on a CPU.
    generator = np.random.SFC64([dropout.seed, number])
    draws = generator.random_raw(-(-like.numel() // 4)).view(np.int16)[: like.numel()]
    bits = torch.from_numpy(draws).to(like.device).view(like.shape)
    return bits.ge(dropout.threshold - _LEVELS // 2).to(like.dtype).mul_(dropout.scale)


def _by_row(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(0, (-1, heads))


@lru_cache(maxsize=64)
def _corner(rows: int, columns: int, shift: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Hides the keys that lie too far before a query: column j of row i where j + shift < i."""
    row, column = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(column + shift < row, float("-inf"))


@lru_cache(maxsize=64)
def _far_corner(rows: int, columns: int, shift: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Hides the keys that lie too far behind a query: column j of row i where j + shift >= i."""
    row, column = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(column + shift >= row, float("-inf"))
