"""Owns attention in a sliding window by blocks: nothing of size L×window is kept between forward and backward.

Shapes: B sequences, H heads, L tokens, D head size; R of the sequences go together, N = R·H; a block has C queries and
K keys, G global keys come first among them. Exact for any length and window; runs on every torch device, tuned for
CPU caches.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from trainer.attention.blocks import Block, Blocks, Mask, lowest
from trainer.attention.dropout import Dropout, Stream


def attend(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    reach: int,
    mask: Mask,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """softmax(q·k) v over keys at most `reach` tokens away and the global ones; q is scaled already.

    Returns B×H×L×D of q's type. What comes out for hidden queries is arbitrary: callers overwrite it.
    """
    return _Banded.apply(q_BHLD, k_BHLD, v_BHLD, reach, mask, dropout)  # pyright: ignore[reportReturnType]


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
        # Zeros: blocks in which nobody sees anything are passed over.
        out_BHLD = _zeros(q_BHLD)
        with torch.autocast(q_BHLD.device.type, enabled=False):
            walk = _Walk(q_BHLD, reach, mask, dropout)
            for group in walk.groups(q_BHLD, k_BHLD, v_BHLD):
                for block in group.blocks:
                    probabilities = walk.probabilities(group, block)
                    kept = walk.drop(probabilities, block, into=probabilities)
                    out = _mix(kept, group.v[:, block.low : block.high], group.v_global)
                    # What dropout keeps is scaled up here, where there is least to scale.
                    torch.mul(walk.by_row(out), walk.scale, out=out_BHLD[group.rows, :, block.start : block.end])
        ctx.save_for_backward(q_BHLD, k_BHLD, v_BHLD, *mask[:4])
        ctx.rest = reach, dropout
        return out_BHLD

    @staticmethod
    def backward(ctx: Any, grad_BHLD: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q_BHLD, k_BHLD, v_BHLD, *mask = ctx.saved_tensors
        reach, dropout = ctx.rest
        gradients = [_zeros(q_BHLD) for _ in range(3)]
        with torch.autocast(q_BHLD.device.type, enabled=False):
            walk = _Walk(q_BHLD, reach, Mask(*mask), dropout)
            for group in walk.groups(q_BHLD, k_BHLD, v_BHLD):
                grad = grad_BHLD[group.rows].to(q_BHLD.dtype)
                _write_gradients(walk, group, grad, *(x[group.rows] for x in gradients))
        return *gradients, None, None, None


class _Group(NamedTuple):
    """Sequences that go together; q, k, v and the global keys and values are N×L×D and N×G×D."""

    rows: slice
    blocks: list[Block]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_global: torch.Tensor | None
    v_global: torch.Tensor | None


def _write_gradients(
    walk: "_Walk", group: _Group, grad: torch.Tensor, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor
) -> None:
    """The probabilities are made again, block by block, from the same inputs and the same dropout seed."""
    # Views where the group is one sequence; otherwise copies, which are copied back.
    dk_NLD, dv_NLD = dk.flatten(0, 1), dv.flatten(0, 1)
    dk_global, dv_global = (None if x is None else torch.zeros_like(x) for x in (group.k_global, group.v_global))
    for block in group.blocks:
        own, keys = slice(block.start, block.end), slice(block.low, block.high)
        grad_block = (grad[:, :, own] * walk.scale).flatten(0, 1)
        probabilities = walk.probabilities(group, block)
        kept = walk.drop(probabilities, block, into=walk.room(1, probabilities.shape))
        _add_mixed(dv_NLD[:, keys], dv_global, kept, grad_block)
        slopes = walk.multiply(grad_block, group.v[:, keys], group.v_global, which=1)
        walk.drop_again(slopes)
        torch.ops.aten._softmax_backward_data.out(slopes, probabilities, -1, slopes.dtype, grad_input=slopes)
        dq[:, :, own] = walk.by_row(_mix(slopes, group.k[:, keys], group.k_global))
        _add_mixed(dk_NLD[:, keys], dk_global, slopes, group.q[:, own])
    walk.give_global(group.rows, dk_NLD, dk_global)
    walk.give_global(group.rows, dv_NLD, dv_global)
    if dk_NLD.data_ptr() != dk.data_ptr():
        dk.copy_(walk.by_row(dk_NLD))
        dv.copy_(walk.by_row(dv_NLD))


class _Walk:
    """One pass over the blocks, with the memory that all of them share."""

    def __init__(self, q_BHLD: torch.Tensor, reach: int, mask: Mask, dropout: Dropout | None) -> None:
        self.scale = 1.0 if dropout is None else dropout.scale
        self._blocks = Blocks(q_BHLD, reach, mask)
        self._mask, self._like, self._heads = mask, q_BHLD, q_BHLD.shape[1]
        self._num_global = 0 if mask.global_BG is None else mask.global_BG.shape[1]
        self._stream: Stream | None = None
        if dropout is not None and dropout.threshold > 0:
            self._stream = Stream(dropout, self._blocks.count, self._blocks.most_scores, q_BHLD.device)
        self._kept: torch.Tensor | None = None
        self._rooms: dict[int, torch.Tensor] = {}

    def groups(self, q_BHLD: torch.Tensor, k_BHLD: torch.Tensor, v_BHLD: torch.Tensor) -> Iterator[_Group]:
        for rows, blocks in self._blocks.groups():
            q, k, v = (x[rows].flatten(0, 1) for x in (q_BHLD, k_BHLD, v_BHLD))
            yield _Group(rows, blocks, q, k, v, self._take_global(rows, k), self._take_global(rows, v))

    def by_row(self, x: torch.Tensor) -> torch.Tensor:
        """N×… as R×H×…"""
        return x.unflatten(0, (-1, self._heads))

    def room(self, which: int, shape: torch.Size) -> torch.Tensor:
        """Memory for one block's scores, written over by the next block."""
        size = shape.numel()
        held = self._rooms.get(which)
        if held is None or held.numel() < size:
            held = self._rooms[which] = torch.empty(size, dtype=self._like.dtype, device=self._like.device)
        return held[:size].view(shape)

    def multiply(self, x: torch.Tensor, y: torch.Tensor, y_global: torch.Tensor | None, *, which: int) -> torch.Tensor:
        """x·y for the global keys and those of the block, N×C×(G+K), in the room of that number."""
        products = self.room(which, torch.Size((*x.shape[:2], self._num_global + y.shape[1])))
        torch.bmm(x, y.mT, out=products[..., self._num_global :])
        if y_global is not None:
            products[..., : self._num_global] = torch.bmm(x, y_global.mT)
        return products

    def probabilities(self, group: _Group, block: Block) -> torch.Tensor:
        q, k = group.q[:, block.start : block.end], group.k[:, block.low : block.high]
        scores = self.multiply(q, k, group.k_global, which=0)
        self._blocks.hide(block, self.by_row(scores[..., self._num_global :]))
        if self._mask.unused_BG is not None:
            unused = self._mask.unused_BG[group.rows, None, None, :]
            self.by_row(scores[..., : self._num_global]).masked_fill_(unused, lowest(scores.dtype))
        # Accumulated in single precision whatever the scores are, as in stock Longformer.
        return torch.softmax(scores, -1, out=scores)

    def drop(self, probabilities: torch.Tensor, block: Block, *, into: torch.Tensor) -> torch.Tensor:
        """What dropout keeps of the probabilities, not scaled up."""
        if self._stream is None:
            return probabilities
        self._kept = self.room(2, probabilities.shape)
        self._stream.write_kept(block.number, self._kept)
        return torch.mul(probabilities, self._kept, out=into)

    def drop_again(self, slopes: torch.Tensor) -> None:
        if self._kept is not None:
            slopes.mul_(self._kept)

    def give_global(self, rows: slice, gradient: torch.Tensor, gradient_global: torch.Tensor | None) -> None:
        """Adds the gradients of the global keys to those of the tokens they are."""
        if gradient_global is not None:
            gradient.scatter_add_(1, self._global_index(rows, gradient), gradient_global)

    def _take_global(self, rows: slice, x: torch.Tensor) -> torch.Tensor | None:
        """The rows of N×L×D at the global positions, N×G×D."""
        return None if self._mask.global_BG is None else x.gather(1, self._global_index(rows, x))

    def _global_index(self, rows: slice, x: torch.Tensor) -> torch.Tensor:
        assert self._mask.global_BG is not None
        index = self._mask.global_BG[rows].repeat_interleave(self._heads, 0)
        return index.unsqueeze(-1).expand(-1, -1, x.shape[2])


def _zeros(like_BHLD: torch.Tensor) -> torch.Tensor:
    """B×H×L×D, in memory B×L×H×D as projections give and take it, so that nobody has to copy."""
    return torch.zeros_like(like_BHLD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _mix(weights: torch.Tensor, x: torch.Tensor, x_global: torch.Tensor | None) -> torch.Tensor:
    """The keys' x and x_global, N×K×D and N×G×D, added up by weights N×C×(G+K) to N×C×D."""
    num_global = weights.shape[-1] - x.shape[1]
    mixed = torch.bmm(weights[..., num_global:], x)
    return mixed if x_global is None else mixed.baddbmm_(weights[..., :num_global], x_global)


def _add_mixed(total: torch.Tensor, total_global: torch.Tensor | None, weights: torch.Tensor, x: torch.Tensor) -> None:
    """Adds the queries' x, N×C×D, by weights N×C×(G+K) to the keys' totals."""
    num_global = weights.shape[-1] - total.shape[1]
    total.baddbmm_(weights[..., num_global:].mT, x)
    if total_global is not None:
        total_global.baddbmm_(weights[..., :num_global].mT, x)
