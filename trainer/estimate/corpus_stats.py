"""Owns counting a corpus before it is trained on: all of a small one, a sample of a large one. Must not import torch.

It reads with the trainer's own code, so what it counts in a whole file is what the trainer will find there.
Shapes: N sequences, R rows, S steps of G rows each.
"""
# ruff: noqa: N815

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data import dataset, sampler, sources
from trainer.data.dataset import Sequences
from trainer.data.masking import expected_rate
from trainer.data.tokenizer import Vocabulary
from trainer.dist_env import Place
from trainer.estimate.memory import Batch
from trainer.spec.config import TrainConfig

IntArray = npt.NDArray[np.int64]

# A tokenizer takes about a second for this much text.
WHOLE_BYTES = 2 << 20
# A large file is looked at in so many places.
_PLACES = 8
# Of a compressed file so many times the sample is decompressed to learn how much there is.
_READ_ON = 15


@dataclass(frozen=True)
class Lengths:
    """How long the sequences of a corpus are, and which share of it they stand for: 1.0 where all of it was read."""

    lengths_N: IntArray
    share: float

    @property
    def is_whole(self) -> bool:
        return self.share == 1.0


@dataclass(frozen=True)
class Counts:
    """What training on a corpus goes through; tokens and slots are those of the whole training, slots those with padding."""

    sequences: int
    rows: int
    steps: int
    tokens: int
    slots: int
    largest_batch: Batch
    ends_with_a_pass: bool
    fills_slots_alike: bool


def read(path: Path, field: str, config: TrainConfig, vocabulary: Vocabulary, *, whole: int = WHOLE_BYTES) -> Lengths:
    """The sequences of a file, or of a sample of `whole` bytes of its text.

    The sample is taken in places spread over the file; of a compressed one, which cannot be entered, its beginning.
    Raises BadInput where the trainer would, as far as it looks, and OSError.
    """
    size = path.stat().st_size
    if not sources.layout(path)[1] and size > whole:
        # Each in the middle of its part of the file, which may go from short to long.
        each = whole // _PLACES
        starts = [(size * (2 * place + 1) // _PLACES - each) // 2 for place in range(_PLACES)]
        found = [_read(path, field, config, vocabulary, start, each) for start in starts]
        return Lengths(np.concatenate([lengths for lengths, _ in found]), sum(share for _, share in found))
    return Lengths(*_read(path, field, config, vocabulary, 0, whole))


def count(lengths: Lengths, config: TrainConfig, place: Place, *, fixes_shapes: bool) -> Counts:
    """Rows, steps and tokens, all of them as the trainer plans them for the ranks of `place`'s world.

    The padding of a batch depends on who is drawn together: it is counted for the first pass and taken for every one.
    """
    starts_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.lengths_N)])
    rows = sampler.arrange(Sequences(np.empty(0, np.int32), starts_N1, digest=""), config)
    num_rows = math.ceil(len(rows) / lengths.share)
    per_pass = sampler.steps_per_epoch(range(num_rows), config, place)
    steps = sampler.total_steps(per_pass, config)
    slots, largest = _first_pass(rows, config, place, fixes_shapes=fixes_shapes)
    passes = steps / per_pass
    return Counts(
        sequences=math.ceil(len(rows.sequences) / lengths.share),
        rows=num_rows,
        steps=steps,
        tokens=round(int(starts_N1[-1]) / lengths.share * passes),
        slots=round(slots / lengths.share * passes),
        largest_batch=largest,
        ends_with_a_pass=steps % per_pass == 0,
        fills_slots_alike=config.pad_to_max_length or (fixes_shapes and not config.group_by_length),
    )


def fullest_batch(config: TrainConfig, *, fixes_shapes: bool) -> Batch:
    """The largest batch that there could be, where nothing is known of the text."""
    rows, length = config.per_device_train_batch_size, config.max_seq_length
    return Batch(rows, length, _labels(rows * length, rows * length, config, fixes_shapes=fixes_shapes))


def _read(
    path: Path, field: str, config: TrainConfig, vocabulary: Vocabulary, start: int, limit: int
) -> tuple[IntArray, float]:
    """The lengths of the sequences from a byte on, and which share of the file they are."""
    with sources.documents(path, field, start=start) as source:
        first, sizes, further = source.bytes_read(), list[int](), list[int]()
        cut = dataset.cut(_first(source.lines, limit, sizes), config, vocabulary)
        lengths_N = np.array([len(sequence) for sequences in cut for sequence in sequences], np.int64)
        if sources.layout(path)[1]:
            # What is decompressed runs ahead of what is read, so how much there is gets told by reading on.
            deque(_first(source.lines, _READ_ON * limit, further), maxlen=0)
        share = (source.bytes_read() - first) / path.stat().st_size
        return lengths_N, share * sum(sizes) / max(1, sum(sizes) + sum(further))


def _first(lines: Iterator[str], limit: int, sizes: list[int]) -> Iterator[str]:
    """Lines up to a limit of characters. Notes how many each has, with its end."""
    left = limit
    for line in lines:
        sizes.append(len(line) + 1)
        left -= sizes[-1]
        yield line
        if left < 0:
            return


def _first_pass(rows: sampler.Rows, config: TrainConfig, place: Place, *, fixes_shapes: bool) -> tuple[int, Batch]:
    """The slots of all batches of one pass, and the largest of these batches."""
    order_SG = sampler.order(rows, config, place, epoch=0)
    # What fills up the last step has no tokens: the filler's index is that of the zero at the end.
    lengths_R = np.append(rows.lengths(), 0)
    batches = lengths_R[sampler.by_batch(order_SG, config, place)]
    longest, times = np.unique(batches.max(-1), return_counts=True)
    widths = [sampler.batch_length(max(1, width), config, fixes_shapes=fixes_shapes) for width in longest.tolist()]
    size = config.per_device_train_batch_size
    slots = size * int(np.dot(widths, times))
    most = size * widths[-1]
    return slots, Batch(size, widths[-1], _labels(most, int(batches.sum(-1).max()), config, fixes_shapes=fixes_shapes))


def _labels(slots: int, tokens: int, config: TrainConfig, *, fixes_shapes: bool) -> int:
    rate = expected_rate(config.masking, config.mlm_probability)
    return sampler.label_capacity(0, slots, rate) if fixes_shapes else math.ceil(rate * tokens)
