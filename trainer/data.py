"""Owns the way from a text file to masked batches.

Shapes: B sequences, L tokens in the longest of them, M labelled tokens of the batch, N sequences, T tokens in all.
"""
# ruff: noqa: N815

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from trainer import stop
from trainer.config import RunConfig
from trainer.device import Device, Place
from trainer.errors import BadInput
from trainer.tokenizer import Vocabulary

IntArray = npt.NDArray[np.int64]

LINE_LIMIT_BYTES = 16 << 20
_LINES_AT_A_TIME = 2048
# Evaluation masks are the masks of an epoch that training never reaches, so they are the same each time.
EVALUATION_EPOCH = 2**32 - 1
_ORDER = 2**64 - 1
_FILLER = -1


@dataclass(frozen=True)
class Sequences:
    """Token sequences back to back: sequence i is tokens_T[starts_N1[i] : starts_N1[i + 1]]."""

    tokens_T: npt.NDArray[np.int32]
    starts_N1: IntArray

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    def __getitem__(self, index: int) -> IntArray:
        return self.tokens_T[self.starts_N1[index] : self.starts_N1[index + 1]].astype(np.int64)


class Batch(NamedTuple):
    """What one rank computes at a time. `num_tokens` and `num_samples` leave padding out."""

    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    label_positions_M: torch.Tensor
    labels_M: torch.Tensor
    num_samples: int
    num_tokens: int

    def to(self, device: Device) -> "Batch":
        ids, mask, positions, labels = (t.to(device.torch_device, non_blocking=True) for t in self[:4])
        return Batch(ids, mask, positions, labels, self.num_samples, self.num_tokens)


def read(path: Path, field: str, config: RunConfig, vocabulary: Vocabulary) -> Sequences:
    """The sequences of a text file, with <s> in front and </s> behind each.

    With line_by_line a line is a sequence, cut at max_seq_length; else the whole text is cut into pieces.
    Raises BadInput, naming file and line, for text that cannot be read or holds nothing.
    """
    room = config.max_seq_length - 2
    pieces: list[IntArray] = []
    rest = np.empty(0, np.int64)
    for lines in _chunks(path, field, keep_newlines=not config.line_by_line):
        encoded = [e.ids for e in vocabulary.tokenizer.encode_batch_fast(lines, add_special_tokens=False)]
        if config.line_by_line:
            pieces += [np.asarray(ids[:room], np.int64) for ids in encoded if ids]
            continue
        rest = np.concatenate([rest, *(np.asarray(ids, np.int64) for ids in encoded)])
        whole = len(rest) // room * room
        pieces += list(rest[:whole].reshape(-1, room))
        rest = rest[whole:]
    if len(rest):
        pieces.append(rest)
    if not pieces:
        raise BadInput(f"{field}: {path} has no text to train on")
    return _pack(pieces, vocabulary)


def steps_per_epoch(num_sequences: int, config: RunConfig, place: Place) -> int:
    """Optimizer steps that one pass takes; the last one may be short."""
    return math.ceil(num_sequences / global_batch_size(config, place))


def global_batch_size(config: RunConfig, place: Place) -> int:
    """Sequences in one optimizer step, over all ranks."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * place.world_size


def train_batches(
    sequences: Sequences, vocabulary: Vocabulary, config: RunConfig, device: Device, *, steps: range
) -> Iterator[list[Batch]]:
    """For each step the batches this rank accumulates. A step's samples depend on the seed and the step alone.

    A pass that does not divide by the global batch ends in a short step, filled with empty sequences.
    """
    plan = _TrainPlan(len(sequences), config, device.place, steps)
    loader = _loader(sequences, vocabulary, config, device, plan)
    accumulated: list[Batch] = []
    for batch in loader:
        accumulated.append(batch)
        if len(accumulated) == config.gradient_accumulation_steps:
            yield accumulated
            accumulated = []


def eval_batches(sequences: Sequences, vocabulary: Vocabulary, config: RunConfig, device: Device) -> Iterator[Batch]:
    """This rank's share of one pass in file order; every rank gets the same number of batches."""
    size, place = config.per_device_eval_batch_size, device.place
    count = math.ceil(len(sequences) / (size * place.world_size))
    starts = [(i * place.world_size + place.rank) * size for i in range(count)]
    plan = [
        [(EVALUATION_EPOCH, i if i < len(sequences) else _FILLER) for i in range(start, start + size)]
        for start in starts
    ]
    yield from _loader(sequences, vocabulary, config, device, plan)


def mask(
    tokens_L: IntArray, vocabulary: Vocabulary, rate: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """BERT's masking: of the chosen tokens 80 % become <mask>, 10 % a random token, 10 % stay.

    Returns the changed tokens (L) and the positions (M) to predict; special tokens are never chosen.
    """
    chosen_L = (rng.random(len(tokens_L)) < rate) & ~np.isin(tokens_L, vocabulary.special_ids)
    positions_M = np.flatnonzero(chosen_L)
    fate_M = rng.random(len(positions_M))
    inputs_L = tokens_L.copy()
    inputs_L[positions_M[fate_M < 0.8]] = vocabulary.mask
    random_R = positions_M[fate_M >= 0.9]
    inputs_L[random_R] = rng.integers(0, vocabulary.size, len(random_R))
    return inputs_L, positions_M


def _chunks(path: Path, field: str, *, keep_newlines: bool) -> Iterator[list[str]]:
    lines: list[str] = []
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LINE_LIMIT_BYTES + 1), b""), 1):
                if len(raw) > LINE_LIMIT_BYTES:
                    raise BadInput(f"{field}: {path}:{number}: the line is longer than 16 MiB; break it up")
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise BadInput(f"{field}: {path}:{number}: not UTF-8 at byte {error.start}") from None
                if keep_newlines or line.strip():
                    lines.append(line if keep_newlines else line.strip())
                if len(lines) == _LINES_AT_A_TIME:
                    yield lines
                    lines = []
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadInput(f"{field}: {path}: {error.strerror}") from None
    if lines:
        yield lines


def _pack(pieces: list[IntArray], vocabulary: Vocabulary) -> Sequences:
    starts_N1 = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) + 2 for piece in pieces], out=starts_N1[1:])
    tokens_T = np.empty(starts_N1[-1], np.int32)
    tokens_T[starts_N1[:-1]] = vocabulary.bos
    tokens_T[starts_N1[1:] - 1] = vocabulary.eos
    for start, piece in zip(starts_N1[:-1], pieces, strict=True):
        tokens_T[start + 1 : start + 1 + len(piece)] = piece
    return Sequences(tokens_T, starts_N1)


class _TrainPlan:
    """The (epoch, index) pairs of each batch of this rank, in order; what a DataLoader calls a batch sampler."""

    def __init__(self, num_sequences: int, config: RunConfig, place: Place, steps: range) -> None:
        self._num_sequences = num_sequences
        self._config = config
        self._place = place
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps) * self._config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self._config.per_device_train_batch_size
        whole = global_batch_size(self._config, self._place)
        per_epoch = steps_per_epoch(self._num_sequences, self._config, self._place)
        epoch, order_N = -1, np.empty(0, np.int64)
        for step in self._steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order_N = _generator(self._config.seed, epoch, _ORDER).permutation(self._num_sequences)
            first = step % per_epoch * whole
            drawn_G = np.full(whole, _FILLER, np.int64)
            taken = order_N[first : first + whole]
            drawn_G[: len(taken)] = taken
            by_batch = drawn_G.reshape(self._config.gradient_accumulation_steps, self._place.world_size, size)
            for indices_B in by_batch[:, self._place.rank]:
                yield [(epoch, int(index)) for index in indices_B]


class _MaskedSamples:
    """Sequences with the masks of an (epoch, index) pair; what a DataLoader calls a dataset."""

    def __init__(self, sequences: Sequences, vocabulary: Vocabulary, config: RunConfig) -> None:
        self._sequences = sequences
        self._vocabulary = vocabulary
        self._config = config

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, key: tuple[int, int]) -> tuple[IntArray, IntArray, IntArray]:
        epoch, index = key
        if index == _FILLER:
            empty = np.empty(0, np.int64)
            return empty, empty, empty
        tokens_L = self._sequences[index]
        rng = _generator(self._config.seed, epoch, index)
        inputs_L, positions_M = mask(tokens_L, self._vocabulary, self._config.mlm_probability, rng)
        return inputs_L, positions_M, tokens_L[positions_M]

    def collate(self, samples: list[tuple[IntArray, IntArray, IntArray]]) -> Batch:
        longest = max(len(inputs_L) for inputs_L, _, _ in samples)
        length = self._config.max_seq_length if self._config.pad_to_max_length else max(longest, 1)
        input_ids_BL = np.full((len(samples), length), self._vocabulary.pad, np.int64)
        attention_mask_BL = np.zeros((len(samples), length), np.int64)
        for row, (inputs_L, _, _) in enumerate(samples):
            input_ids_BL[row, : len(inputs_L)] = inputs_L
            attention_mask_BL[row, : len(inputs_L)] = 1
        positions_M = np.concatenate([row * length + positions for row, (_, positions, _) in enumerate(samples)])
        return Batch(
            torch.from_numpy(input_ids_BL),
            torch.from_numpy(attention_mask_BL),
            torch.from_numpy(positions_M),
            torch.from_numpy(np.concatenate([labels for _, _, labels in samples])),
            num_samples=sum(len(inputs_L) > 0 for inputs_L, _, _ in samples),
            num_tokens=int(attention_mask_BL.sum()),
        )


def _loader(
    sequences: Sequences,
    vocabulary: Vocabulary,
    config: RunConfig,
    device: Device,
    plan: "_TrainPlan | list[list[tuple[int, int]]]",
) -> Iterator[Batch]:
    samples = _MaskedSamples(sequences, vocabulary, config)
    workers = min(config.dataloader_num_workers, len(plan))
    return iter(
        DataLoader(
            samples,  # pyright: ignore[reportArgumentType]
            batch_sampler=plan,  # pyright: ignore[reportArgumentType]
            collate_fn=samples.collate,
            num_workers=workers,
            pin_memory=config.dataloader_pin_memory and device.pins_memory,
            # Forked workers share the tokens instead of copying them; they never touch the device.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_begin_worker,
        )
    )


def _begin_worker(worker_id: int) -> None:
    stop.release()


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    key = np.array([seed << 32 | epoch, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
