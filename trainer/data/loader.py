"""Owns the way from token sequences to the masked batches of a rank: which rows a step draws, and their tensors.

A row is what the model sees as one: a sequence, or several packed behind each other.
Shapes: B rows, L tokens in the longest of them, M labelled tokens of the batch, N sequences, R rows, G rows a step.
"""
# ruff: noqa: N815

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from trainer.data.masking import draw, expected_rate, mask
from trainer.data.sampler import FILLER, Rows, batch_length, by_batch, label_capacity, order, steps_per_epoch
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device
from trainer.dist_env import Place
from trainer.spec.config import RunConfig

IntArray = npt.NDArray[np.int64]

# Evaluation masks are the masks of an epoch that training never reaches, so they are the same each time.
EVALUATION_EPOCH = 2**32 - 1
IGNORED = -100


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
        [(EVALUATION_EPOCH, i if i < len(rows) else FILLER) for i in range(start, start + size)] for start in starts
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
        per_epoch = steps_per_epoch(self._rows, self._config, self._place)
        epoch, order_SG = -1, np.empty((0, 0), np.int64)
        for step in self._steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order_SG = order(self._rows, self._config, self._place, epoch)
            batches = by_batch(order_SG[step % per_epoch], self._config, self._place)
            for indices_B in batches[:, self._place.rank]:
                yield [(epoch, int(index)) for index in indices_B]


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
        members = [[] if row == FILLER else self._rows[row] for _, row in keys]
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
        size = len(keys), self._length(column_T)
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

    def _length(self, column_T: IntArray) -> int:
        return batch_length(1 + int(column_T.max(initial=0)), self._config, fixes_shapes=self._fixes_shapes)

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
