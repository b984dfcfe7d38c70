"""Owns which sequences make a row, which rows a step takes, and how many steps there are. Must not import torch: estimates use it.

A row is what the model sees as one: a sequence, or several packed behind each other.
Shapes: N sequences, R rows, S steps of G rows each.
"""
# ruff: noqa: N815

import math
from collections.abc import Sized
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data import packing
from trainer.data.dataset import Sequences
from trainer.dist_env import Place
from trainer.spec.config import TrainConfig

IntArray = npt.NDArray[np.int64]

# Stands for a row where a step has fewer of them than it takes.
FILLER = -1
_ORDER = 2**64 - 1
# With group_by_length, rows are sorted within this many steps' worth of a shuffled pass.
_STEPS_SORTED_TOGETHER = 50
# With group_by_length on a device that wants fixed shapes, batches have one of this many lengths.
_LENGTHS = 8


@dataclass(frozen=True)
class Rows:
    """Row i holds the sequences members_N[starts_R1[i] : starts_R1[i + 1]]; where nothing is packed, sequence i."""

    sequences: Sequences
    members_N: IntArray | None = None
    starts_R1: IntArray | None = None

    def __len__(self) -> int:
        return len(self.sequences) if self.starts_R1 is None else len(self.starts_R1) - 1

    def __getitem__(self, index: int) -> list[int]:
        if self.members_N is None or self.starts_R1 is None:
            return [index]
        return self.members_N[self.starts_R1[index] : self.starts_R1[index + 1]].tolist()

    def lengths(self) -> IntArray:
        """Tokens of each row: R."""
        lengths_N = self.sequences.lengths()
        if self.members_N is None or self.starts_R1 is None:
            return lengths_N
        return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N[self.members_N])])[self.starts_R1])


def arrange(sequences: Sequences, config: TrainConfig) -> Rows:
    """One sequence a row, or with config.packing as many as fit into max_seq_length, best fit first."""
    if not config.packing:
        return Rows(sequences)
    return Rows(sequences, *packing.pack(sequences.lengths(), config.max_seq_length))


def steps_per_epoch(rows: Sized, config: TrainConfig, place: Place) -> int:
    """Optimizer steps that one pass takes; the last one may be short."""
    return math.ceil(len(rows) / global_batch_size(config, place))


def global_batch_size(config: TrainConfig, place: Place) -> int:
    """Rows in one optimizer step, over all ranks."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * place.world_size


def total_steps(steps_per_epoch: int, config: TrainConfig) -> int:
    """Optimizer steps of the whole training."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * steps_per_epoch))


def order(rows: Rows, config: TrainConfig, place: Place, epoch: int) -> IntArray:
    """The rows of every step of a pass, S×G; the last step is filled up. It depends on the seed and the pass alone."""
    whole = global_batch_size(config, place)
    generator = _generator(config.seed, epoch, _ORDER)
    order_R = generator.permutation(len(rows))
    if config.group_by_length:
        order_R = _group(order_R, rows.sequences.lengths(), whole)
    order_SG = np.pad(order_R, (0, -len(order_R) % whole), constant_values=FILLER).reshape(-1, whole)
    if config.group_by_length:
        # Otherwise every stretch of training would go from long to short.
        order_SG[:-1] = order_SG[generator.permutation(len(order_SG) - 1)]
    return order_SG


def by_batch(order_SG: IntArray, config: TrainConfig, place: Place) -> IntArray:
    """The rows of a step, or of every step, by the batch and the rank that take them: …×batches×ranks×B."""
    size = config.per_device_train_batch_size
    return order_SG.reshape(*order_SG.shape[:-1], config.gradient_accumulation_steps, place.world_size, size)


def batch_length(longest: int, config: TrainConfig, *, fixes_shapes: bool) -> int:
    """The width of a batch whose longest row has so many tokens."""
    whole = config.max_seq_length
    if config.pad_to_max_length:
        return whole
    if not fixes_shapes:
        return longest
    # Who groups by length wants short batches: then a few lengths are allowed.
    part = -(-whole // _LENGTHS) if config.group_by_length else whole
    return min(whole, -(-longest // part) * part)


def label_capacity(labels: int, slots: int, rate: float) -> int:
    """How many labels a batch of fixed shape has room for: the same number for all batches but the oddest.

    The masked tokens of `slots` are some six deviations below it; where they are more, it is as often as large as needed.
    """
    mean = slots * rate
    # Spans of up to three tokens that are chosen as one have up to three times the variance of single tokens.
    capacity = min(slots, math.ceil(mean + 6 * math.sqrt(3 * mean)))
    return capacity * max(1, math.ceil(labels / capacity))


def _group(order_R: IntArray, lengths_R: IntArray, whole: int) -> IntArray:
    stretch = whole * _STEPS_SORTED_TOGETHER
    parts = [order_R[start : start + stretch] for start in range(0, len(order_R), stretch)]
    return np.concatenate([part[np.argsort(-lengths_R[part], kind="stable")] for part in parts])


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    key = np.array([seed << 32 | epoch, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
