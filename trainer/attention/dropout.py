"""Owns dropout: which values are dropped is decided by a seed alone, so backward draws them again instead of keeping them."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

_LEVELS = 1 << 16
# Values of this many stay in a core's cache from one operation to the next.
_VALUES_AT_A_TIME = 1 << 17


@dataclass(frozen=True)
class Dropout:
    """Drops a share of the values. The same seed drops the same ones."""

    rate: float
    seed: int

    @property
    def threshold(self) -> int:
        return min(round(self.rate * _LEVELS), _LEVELS - 1)

    @property
    def scale(self) -> float:
        return _LEVELS / (_LEVELS - self.threshold)


class Stream:
    """Random bits for `count` stretches of at most `largest` values, 16 for each value.

    Drawing them all would be most of what dropout costs. Two tables are drawn, and the bits of a stretch are a piece of
    the one xor a piece of the other, from places of its own: as in tabulation hashing, any two are independent.
    """

    def __init__(self, dropout: Dropout, count: int, largest: int, device: torch.device) -> None:
        self._first_kept = dropout.threshold - _LEVELS // 2
        words = max(1, _words(largest))
        generator = np.random.SFC64(dropout.seed)
        self._starts = np.random.Generator(generator).integers(0, words, (count, 2))
        self._tables = torch.from_numpy(generator.random_raw(4 * words).view(np.int64).reshape(2, -1)).to(device)
        self._bits = torch.empty(words, dtype=torch.int64, device=device)

    def write_kept(self, number: int, kept: torch.Tensor) -> None:
        """Writes 0 where a value of that stretch is dropped and 1 elsewhere."""
        words = _words(kept.numel())
        one, other = (
            table[start : start + words] for table, start in zip(self._tables, self._starts[number], strict=True)
        )
        bits = torch.bitwise_xor(one, other, out=self._bits[:words]).view(torch.int16)
        # A comparison that writes floating point is far faster than one that writes bool.
        torch.ge(bits[: kept.numel()].view(kept.shape), self._first_kept, out=kept)


def install(module: nn.Module, device_type: str) -> None:
    """On a CPU, where torch draws one value after the other, every dropout below a module becomes one of this stream."""
    if device_type != "cpu":
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, SeededDropout(child.p))


class SeededDropout(nn.Dropout):
    """As torch's, by torch's generator: what it drops follows from the state of that."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return input
        return cast(torch.Tensor, _Drop.apply(input, new(self.p)))


def new(rate: float) -> Dropout:
    """Seeded from torch's generator, so that seeding it, or recomputing under a checkpoint, gives the same."""
    return Dropout(rate, int(torch.randint(2**31, ())))


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: torch.Tensor, dropout: Dropout
    ) -> torch.Tensor:
        ctx.dropout = dropout
        return _drop(values, dropout)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _drop(grad, ctx.dropout), None


def _drop(values: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    kept = torch.empty_like(values, memory_format=torch.contiguous_format)
    sources, targets = (x.flatten().split(_VALUES_AT_A_TIME) for x in (values, kept))
    stream = Stream(dropout, len(targets), min(values.numel(), _VALUES_AT_A_TIME), values.device)
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        stream.write_kept(number, target)
        target.mul_(source).mul_(dropout.scale)
    return kept


def _words(count: int) -> int:
    """64-bit words that hold 16 bits for each of so many."""
    return -(-count // 4)
