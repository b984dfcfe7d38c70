"""Owns the way from token sequences to the masked batches of a rank: which rows a step draws, and their tensors.

A row is what the model sees as one: a sequence, or several packed behind each other.
Shapes: B rows, L tokens in the longest of them, M labelled tokens of the batch, N sequences, R rows, G rows a step.
"""
# ruff: noqa: N815

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from trainer import packing
from trainer.config import RunConfig
from trainer.corpus import Sequences
from trainer.device import Device
from trainer.masking import draw, expected_rate, mask
from trainer.place import Place
from trainer.tokenizer import Vocabulary

IntArray = npt.NDArray[np.int64]

# Evaluation masks are the masks of an epoch that training never reaches, so they are the same each time.
EVALUATION_EPOCH = 2**32 - 1
IGNORED = -100
_ORDER = 2**64 - 1
_FILLER = -1
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


class Batch(NamedTuple):
    """What one rank computes at a time. Segment 0 is padding; the counts leave it out.

    The specials among the tokens are never masked.
    """

    input_ids_BL: torch.Tensor
    position_ids_BL: torch.Tensor
    segments_BL: torch.Tensor
    label_positions_M: torch.Tensor
    labels_M: torch.Tensor
    num_samples: int
    num_tokens: int
    num_labels: int
    num_specials: int = 0

    def to(self, device: Device) -> "Batch":
        ids, positions, segments, at, labels = (t.to(device.torch_device, non_blocking=True) for t in self[:5])
        return Batch(ids, positions, segments, at, labels, *self[5:])


def arrange(sequences: Sequences, config: RunConfig) -> Rows:
    """One sequence a row, or with config.packing as many as fit into max_seq_length, best fit first."""
    if not config.packing:
        return Rows(sequences)
    return Rows(sequences, *packing.pack(sequences.lengths(), config.max_seq_length))


def steps_per_epoch(rows: Rows, config: RunConfig, place: Place) -> int:
    """Optimizer steps that one pass takes; the last one may be short."""
    return math.ceil(len(rows) / global_batch_size(config, place))


def global_batch_size(config: RunConfig, place: Place) -> int:
    """Rows in one optimizer step, over all ranks."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * place.world_size


def label_capacity(labels: int, slots: int, rate: float) -> int:
    """How many labels a batch of fixed shape has room for: the same number for all batches but the oddest.

    The masked tokens of `slots` are some six deviations below it; where they are more, it is as often as large as needed.
    """
    mean = slots * rate
    # Spans of up to three tokens that are chosen as one have up to three times the variance of single tokens.
    capacity = min(slots, math.ceil(mean + 6 * math.sqrt(3 * mean)))
    return capacity * max(1, math.ceil(labels / capacity))


def train_batches(
    rows: Rows, vocabulary: Vocabulary, config: RunConfig, device: Device, *, steps: range
) -> Iterator[list[Batch]]:
    """For each step the batches this rank accumulates. A step's rows and masks depend on the seed and the step alone.

    A pass that does not divide by the global batch ends in a short step, filled with empty rows.
    """
    loader = _loader(rows, vocabulary, config, device, _TrainPlan(rows, config, device.place, steps))
    accumulated: list[Batch] = []
    for batch in loader:
        accumulated.append(batch)
        if len(accumulated) == config.gradient_accumulation_steps:
            yield accumulated
            accumulated = []


def eval_batches(rows: Rows, vocabulary: Vocabulary, config: RunConfig, device: Device) -> Iterator[Batch]:
    """This rank's share of one pass in file order; every rank gets the same number of batches."""
    size, place = config.per_device_eval_batch_size, device.place
    count = math.ceil(len(rows) / (size * place.world_size))
    starts = [(i * place.world_size + place.rank) * size for i in range(count)]
    plan = [
        [(EVALUATION_EPOCH, i if i < len(rows) else _FILLER) for i in range(start, start + size)] for start in starts
    ]
    yield from _loader(rows, vocabulary, config, device, plan)


class _TrainPlan:
    """The (epoch, row) pairs of each batch of this rank, in order; what a DataLoader calls a batch sampler."""

    def __init__(self, rows: Rows, config: RunConfig, place: Place, steps: range) -> None:
        self._rows = rows
        self._config = config
        self._place = place
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps) * self._config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self._config.per_device_train_batch_size
        per_epoch = steps_per_epoch(self._rows, self._config, self._place)
        epoch, order_SG = -1, np.empty((0, 0), np.int64)
        for step in self._steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order_SG = self._order(epoch)
            drawn_G = order_SG[step % per_epoch]
            by_batch = drawn_G.reshape(self._config.gradient_accumulation_steps, self._place.world_size, size)
            for indices_B in by_batch[:, self._place.rank]:
                yield [(epoch, int(index)) for index in indices_B]

    def _order(self, epoch: int) -> IntArray:
        """The rows of every step of a pass: S steps of G rows, the last one filled up."""
        whole = global_batch_size(self._config, self._place)
        generator = _generator(self._config.seed, epoch, _ORDER)
        order_R = generator.permutation(len(self._rows))
        if self._config.group_by_length:
            order_R = _group(order_R, self._rows.sequences.lengths(), whole)
        order_SG = np.pad(order_R, (0, -len(order_R) % whole), constant_values=_FILLER).reshape(-1, whole)
        if self._config.group_by_length:
            # Otherwise every stretch of training would go from long to short.
            order_SG[:-1] = order_SG[generator.permutation(len(order_SG) - 1)]
        return order_SG


def _group(order_R: IntArray, lengths_R: IntArray, whole: int) -> IntArray:
    stretch = whole * _STEPS_SORTED_TOGETHER
    parts = [order_R[start : start + stretch] for start in range(0, len(order_R), stretch)]
    return np.concatenate([part[np.argsort(-lengths_R[part], kind="stable")] for part in parts])


class _MaskedRows:
    """Batches of rows with the masks of an epoch; what a DataLoader calls a dataset."""

    def __init__(self, rows: Rows, vocabulary: Vocabulary, config: RunConfig, fixes_shapes: bool) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._config = config
        self._fixes_shapes = fixes_shapes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """The batch of the rows named by (epoch, row), all of one epoch."""
        config, sequences = self._config, self._rows.sequences
        members = [[] if row == _FILLER else self._rows[row] for _, row in keys]
        members_S, sizes_B = (
            np.array([i for row in members for i in row], np.int64),
            np.array([len(m) for m in members]),
        )
        starts_S, ends_S = sequences.starts_N1[members_S], sequences.starts_N1[members_S + 1]
        lengths_S = ends_S - starts_S
        at_T = _count_up(lengths_S)
        tokens_T = sequences.tokens_T[np.repeat(starts_S, lengths_S) + at_T].astype(np.int64)
        draws_T = draw(config.seed, keys[0][0], members_S, lengths_S, at_T)
        inputs_T, chosen_M = mask(tokens_T, at_T, draws_T, self._vocabulary, config.masking, config.mlm_probability)
        row_T = np.repeat(np.repeat(np.arange(len(keys)), sizes_B), lengths_S)
        column_T = _count_up(np.bincount(row_T, minlength=len(keys)))
        size = len(keys), self._length(1 + int(column_T.max(initial=0)))
        place_T = row_T * size[1] + column_T
        ids_BL = np.full(size, self._vocabulary.pad, np.int64)
        positions_BL = np.full(size, self._vocabulary.pad, np.int64)
        segments_BL = np.zeros(size, np.int64)
        ids_BL.flat[place_T] = inputs_T
        positions_BL.flat[place_T] = at_T + self._vocabulary.pad + 1
        segments_BL.flat[place_T] = np.repeat(_count_up(sizes_B) + 1, lengths_S)
        at_M, labels_M = self._fill(place_T[chosen_M], tokens_T[chosen_M], ids_BL.size)
        tensors = (torch.from_numpy(a) for a in (ids_BL, positions_BL, segments_BL, at_M, labels_M))
        return Batch(
            *tensors,
            num_samples=len(members_S),
            num_tokens=len(tokens_T),
            num_labels=len(chosen_M),
            num_specials=int(self._vocabulary.is_special_V[tokens_T].sum()),
        )

    def _length(self, longest: int) -> int:
        whole = self._config.max_seq_length
        if self._config.pad_to_max_length:
            return whole
        if not self._fixes_shapes:
            return longest
        # Who groups by length wants short batches: then a few lengths are allowed.
        part = -(-whole // _LENGTHS) if self._config.group_by_length else whole
        return min(whole, -(-longest // part) * part)

    def _fill(self, at_M: IntArray, labels_M: IntArray, slots: int) -> tuple[IntArray, IntArray]:
        if not self._fixes_shapes:
            return at_M, labels_M
        rate = expected_rate(self._config.masking, self._config.mlm_probability)
        room = label_capacity(len(labels_M), slots, rate) - len(labels_M)
        return np.pad(at_M, (0, room)), np.pad(labels_M, (0, room), constant_values=IGNORED)


def _count_up(lengths: IntArray) -> IntArray:
    """0, 1, … up to each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _loader(
    rows: Rows,
    vocabulary: Vocabulary,
    config: RunConfig,
    device: Device,
    plan: "_TrainPlan | list[list[tuple[int, int]]]",
) -> Iterator[Batch]:
    masked = _MaskedRows(rows, vocabulary, config, device.fixes_shapes)
    workers = min(config.dataloader_num_workers, len(plan))
    return iter(
        DataLoader(
            masked,  # pyright: ignore[reportArgumentType]
            batch_sampler=plan,  # pyright: ignore[reportArgumentType]
            collate_fn=_whole,
            num_workers=workers,
            pin_memory=config.dataloader_pin_memory and device.pins_memory,
            # Forked workers share the tokens instead of copying them; they never touch the device.
            multiprocessing_context="fork" if workers else None,
        )
    )


def _whole(batch: Any) -> Any:
    """Batches come whole from `__getitems__`: there is nothing to collate."""
    return batch


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    key = np.array([seed << 32 | epoch, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
