"""Owns how sequences are cut into blocks of queries, which keys a block reaches and what of them is hidden.

Shapes: B sequences, L tokens, G global keys; R of the sequences go together, C queries and K keys are a block's.
"""
# ruff: noqa: N815

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

# Scores of this many bytes stay in a core's cache between the product that makes them and the one that uses them.
_SCORES_BYTES = 2 << 20
# The fewer queries a block has, the fewer keys of others it reads; below 64 a CPU's matrix products get slower.
_CPU_QUERIES = 64


class Mask(NamedTuple):
    """Which keys a query may see beside its window; None where there is nothing to hide.

    `hidden_BL`: keys out of the window's reach, padding and global ones; as queries their results are of no interest.
    `global_BG`: positions of the global keys, with `unused_BG` true where a sequence has fewer. `segments_BL`: queries
    see only keys of their own number, and equal numbers lie side by side; `ends` says where those segments, padding
    among them, end in the rows laid end to end.
    """

    hidden_BL: torch.Tensor | None = None
    global_BG: torch.Tensor | None = None
    unused_BG: torch.Tensor | None = None
    segments_BL: torch.Tensor | None = None
    ends: tuple[int, ...] | None = None


class Block(NamedTuple):
    """Queries [start, end) of sequences `rows` and the keys [low, high) among which is all that one of them sees."""

    number: int
    rows: slice
    start: int
    end: int
    low: int
    high: int


class Blocks:
    """The blocks of one batch: `count` of them, none with more than `most_scores` pairs of a query and a key."""

    def __init__(self, like_BHLD: torch.Tensor, reach: int, mask: Mask) -> None:
        self._num_rows, heads, self._length, _ = like_BHLD.shape
        self._reach, self._mask = reach, mask
        on_cpu = like_BHLD.device.type == "cpu"
        self._num_queries = min(self._length, _CPU_QUERIES if on_cpu else max(64, min(128, reach // 2 // 16 * 16)))
        num_global = 0 if mask.global_BG is None else mask.global_BG.shape[1]
        widest = num_global + min(self._length, self._num_queries + 2 * reach)
        a_row = heads * self._num_queries * widest * like_BHLD.element_size()
        self._rows_at_once = min(self._num_rows, max(1, _SCORES_BYTES // a_row)) if on_cpu else self._num_rows
        self.most_scores = self._rows_at_once * heads * self._num_queries * widest
        self.count = math.ceil(self._num_rows / self._rows_at_once) * math.ceil(self._length / self._num_queries)
        # On a CPU looking at the mask costs less than the keys that it rules out; a device would have to be waited for.
        self._extents = _extents(mask) if on_cpu else None

    def groups(self) -> Iterator[tuple[slice, list[Block]]]:
        """Sequences that go together, with their blocks; those that see nothing are left out."""
        number = 0
        for first in range(0, self._num_rows, self._rows_at_once):
            rows = slice(first, min(self._num_rows, first + self._rows_at_once))
            blocks: list[Block] = []
            for start in range(0, self._length, self._num_queries):
                end = min(self._length, start + self._num_queries)
                low, high = self._keys(rows, start, end)
                if low < high:
                    blocks.append(Block(number, rows, start, end, low, high))
                number += 1
            yield rows, blocks

    def hide(self, block: Block, scores_RHCK: torch.Tensor) -> None:
        """Lowers the scores of keys that a query does not see until nothing is left of them."""
        rows, keys = block.end - block.start, block.high - block.low
        before_CC, behind_CC = _triangles(self._num_queries, scores_RHCK.dtype, scores_RHCK.device)
        # Keys before the window of the last query, and keys behind that of the first.
        before = min(keys, block.end - 1 - self._reach - block.low)
        if before > 0:
            shift = block.low + self._reach - block.start
            scores_RHCK[..., :before].add_(before_CC[:rows, shift : shift + before])
        behind = min(keys, block.high - (block.start + self._reach + 1))
        if behind > 0:
            shift = block.high - behind - (block.start + self._reach + 1)
            scores_RHCK[..., keys - behind :].add_(behind_CC[:rows, shift : shift + behind])
        hidden = self._hidden(block)
        if hidden is not None:
            scores_RHCK.add_(hidden.to(scores_RHCK.dtype).mul_(lowest(scores_RHCK.dtype)))

    def _keys(self, rows: slice, start: int, end: int) -> tuple[int, int]:
        low, high = max(0, start - self._reach), min(self._length, end + self._reach)
        if self._extents is None:
            return low, high
        first_BL, last_BL = self._extents
        return max(low, int(first_BL[rows, start:end].min())), min(high, int(last_BL[rows, start:end].max()))

    def _hidden(self, block: Block) -> torch.Tensor | None:
        """True where a key is hidden from a query: R×1×(1 or C)×K."""
        hidden = None
        if self._mask.hidden_BL is not None:
            hidden = self._mask.hidden_BL[block.rows, None, None, block.low : block.high]
        if self._mask.segments_BL is not None:
            segments = self._mask.segments_BL[block.rows]
            other = segments[:, block.start : block.end, None] != segments[:, None, block.low : block.high]
            hidden = other[:, None] if hidden is None else hidden | other[:, None]
        return None if self._extents is not None and hidden is not None and not bool(hidden.any()) else hidden


def lowest(dtype: torch.dtype) -> float:
    """What hides a score when added to it: finite even twice, so that a row that sees nothing still gives numbers."""
    return torch.finfo(dtype).min / 2


def _extents(mask: Mask) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The first key that each query may see and the one after the last, its window aside: B×L each.

    For hidden queries, which nobody asks for, they are L and 0.
    """
    if mask.hidden_BL is None and mask.segments_BL is None:
        return None
    some = mask.segments_BL if mask.segments_BL is not None else mask.hidden_BL
    assert some is not None
    rows, length = some.shape
    at_BL = np.broadcast_to(np.arange(length), (rows, length))
    first_BL, last_BL = np.zeros((rows, length), np.int64), np.full((rows, length), length)
    if mask.segments_BL is not None:
        segments_BL = mask.segments_BL.numpy()
        turns_BL = np.ones((rows, length + 1), bool)
        turns_BL[:, 1:-1] = segments_BL[:, 1:] != segments_BL[:, :-1]
        first_BL = np.maximum.accumulate(np.where(turns_BL[:, :-1], at_BL, 0), 1)
        last_BL = np.minimum.accumulate(np.where(turns_BL[:, 1:], at_BL + 1, length)[:, ::-1], 1)[:, ::-1]
    if mask.hidden_BL is not None:
        hidden_BL = mask.hidden_BL.numpy()
        seen_B = np.where(hidden_BL, 0, at_BL + 1).max(1, keepdims=True)
        first_BL = np.where(hidden_BL, length, first_BL)
        last_BL = np.where(hidden_BL, 0, np.minimum(last_BL, seen_B))
    return first_BL, last_BL


@lru_cache(maxsize=16)
def _triangles(side: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two C×C: one that hides where the column is less than the row, and one that hides everywhere else."""
    row, column = torch.arange(side, device=device)[:, None], torch.arange(side, device=device)
    nothing = torch.zeros(side, side, dtype=dtype, device=device)
    return nothing.masked_fill(column < row, lowest(dtype)), nothing.masked_fill(column >= row, lowest(dtype))
