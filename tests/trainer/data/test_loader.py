"""From text to batches: what a corpus may look like, how rows are made of it, which tokens are masked."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.conftest import Inputs
from trainer.data import dataset, loader, masking, packing, sampler, tokenizer
from trainer.data import sources as text
from trainer.data.loader import Batch
from trainer.data.sampler import Rows
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device
from trainer.dist_env import Place
from trainer.errors import BadInput
from trainer.spec.config import RunConfig

Spec = Callable[..., dict[str, Any]]
LINES = ["Each of these lines is a document.", "", "The second one is a little longer than the first.", "Third."]


@pytest.fixture(scope="module")
def vocabulary(inputs: Inputs) -> Vocabulary:
    return tokenizer.load(inputs.tokenizer)


@pytest.fixture
def read(spec: Spec, vocabulary: Vocabulary, tmp_path: Path) -> Callable[..., dataset.Sequences]:
    def read_file(path: Path, **options: Any) -> dataset.Sequences:
        config = RunConfig.model_validate(spec(**options))
        return dataset.read(path, "train_file", config, vocabulary, tmp_path / "cache", lambda _: None)

    return read_file


def device(rank: int = 0, world_size: int = 1) -> Device:
    return Device("cpu", torch.device("cpu"), Place(rank, rank, world_size))


def batches(rows: Rows, vocabulary: Vocabulary, options: dict[str, Any], where: Device, steps: int) -> list[Batch]:
    config = RunConfig.model_validate(options)
    drawn = loader.train_batches(rows, vocabulary, config, where, steps=range(steps))
    return [batch for accumulated in drawn for batch in accumulated]


def rows_of(batch: list[Batch]) -> set[tuple[int, ...]]:
    """Every row as it is shown to the model, padding left out; masks included."""
    found: set[tuple[int, ...]] = set()
    for part in batch:
        for ids, segments in zip(part.input_ids_BL, part.segments_BL, strict=True):
            if bool((segments > 0).any()):
                found.add(tuple(ids[segments > 0].tolist()))
    return found


def test_lines_become_framed_sequences(read: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES))
    sequences = read(path, line_by_line=True)
    assert [vocabulary.tokenizer.decode(sequences[i][1:-1].tolist()) for i in range(3)] == [x for x in LINES if x]
    assert {(int(sequences[i][0]), int(sequences[i][-1])) for i in range(3)} == {(vocabulary.bos, vocabulary.eos)}


def test_joined_text_loses_nothing(read: Any, vocabulary: Vocabulary, inputs: Inputs) -> None:
    sequences = read(inputs.validation_file)
    assert all(sequences.lengths()[:-1] == 32)
    tokens = [t for i in range(len(sequences)) for t in sequences[i][1:-1].tolist()]
    assert vocabulary.tokenizer.decode(tokens) == inputs.validation_file.read_text()


def test_every_format_gives_the_same_sequences(read: Any, tmp_path: Path) -> None:
    text = "\n".join(LINES).encode()
    records = "\n".join(json.dumps({"id": 1, "text": line}) for line in LINES).encode()
    contents = {
        "a.txt": text,
        "a.txt.gz": gzip.compress(text),
        "a.txt.zst": zstandard.compress(text),
        "a.jsonl": records,
        "a.jsonl.gz": gzip.compress(records),
    }
    found = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found.append(read(tmp_path / name, line_by_line=True))
    assert len({bytes(s.tokens_T.tobytes()) for s in found}) == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "has no text"),
        ("a.txt", b"ok\n\xff\n", "a.txt:2: not UTF-8 at byte 0"),
        ("a.txt", b"x" * (text.LINE_LIMIT_BYTES + 1), "a.txt:1: the line is longer than 16 MiB"),
        ("a.jsonl", b'{"text": "ok"}\n{"txt": 1}\n', 'a.jsonl:2: has no "text" column'),
        ("a.jsonl", b"{\n", "a.jsonl:1: not JSON"),
        # mtime: the header would carry the second of collection into the test's name, and two test processes would disagree.
        ("a.txt.gz", gzip.compress(b"line\n" * 100, mtime=0)[:-12], "the compressed file is broken"),
        ("a.txt.gz", b"not gzip", "a.txt.gz:1: the compressed file is broken"),
        ("a.txt.zst", b"not zstd at all", "a.txt.zst:1: the compressed file is broken"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_bad_text_is_named(read: Any, tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match="train_file: ") as caught:
        read(tmp_path / name, line_by_line=True)
    assert says in str(caught.value)


def test_a_corpus_is_tokenized_once(
    spec: Spec, vocabulary: Vocabulary, tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = RunConfig.model_validate(spec())

    def read() -> dataset.Sequences:
        return dataset.read(inputs.train_file, "train_file", config, vocabulary, tmp_path, said.append)

    first, second = read(), read()
    assert len(said) == 1
    assert first.digest == second.digest
    assert np.array_equal(first.tokens_T, second.tokens_T)
    shorter = RunConfig.model_validate(spec(max_seq_length=16))
    assert (
        dataset.read(inputs.train_file, "train_file", shorter, vocabulary, tmp_path, said.append).digest != first.digest
    )
    assert len(said) == 2


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"group_by_length": True}])
def test_a_step_does_not_depend_on_how_it_is_split(
    read: Any, spec: Spec, vocabulary: Vocabulary, inputs: Inputs, options: dict[str, Any]
) -> None:
    options = options | {"line_by_line": True}
    rows = sampler.arrange(read(inputs.train_file, **options), RunConfig.model_validate(spec(**options)))
    whole = spec(per_device_train_batch_size=8, **options)
    parts = spec(per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    one = batches(rows, vocabulary, whole, device(), 40)
    two = [batches(rows, vocabulary, parts, device(rank, 2), 40) for rank in range(2)]
    for step in range(40):
        assert rows_of([one[step]]) == rows_of([b for rank in two for b in rank[2 * step : 2 * step + 2]])


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"group_by_length": True}])
def test_a_pass_shows_every_sequence_once(
    read: Any, spec: Spec, vocabulary: Vocabulary, inputs: Inputs, options: dict[str, Any]
) -> None:
    options = options | {"line_by_line": True, "per_device_train_batch_size": 7}
    config = RunConfig.model_validate(spec(**options))
    rows = sampler.arrange(read(inputs.train_file, **options), config)
    steps = sampler.steps_per_epoch(rows, config, Place(0, 0, 1))
    drawn = batches(rows, vocabulary, spec(**options), device(), steps)
    assert sum(b.num_samples for b in drawn) == len(rows.sequences) == 200
    assert sum(b.num_tokens for b in drawn) == len(rows.sequences.tokens_T)


def test_workers_change_nothing(read: Any, spec: Spec, vocabulary: Vocabulary, inputs: Inputs) -> None:
    rows = sampler.arrange(read(inputs.train_file), RunConfig.model_validate(spec()))
    alone = batches(rows, vocabulary, spec(), device(), 5)
    helped = batches(rows, vocabulary, spec(dataloader_num_workers=2), device(), 5)
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


def test_grouping_leaves_little_padding(read: Any, spec: Spec, vocabulary: Vocabulary, inputs: Inputs) -> None:
    def slots(**options: Any) -> int:
        options |= {"line_by_line": True, "max_seq_length": 64}
        rows = sampler.arrange(read(inputs.train_file, **options), RunConfig.model_validate(spec(**options)))
        config = RunConfig.model_validate(spec(**options))
        steps = sampler.steps_per_epoch(rows, config, Place(0, 0, 1))
        return sum(b.input_ids_BL.numel() for b in batches(rows, vocabulary, spec(**options), device(), steps))

    padded, grouped, packed = slots(pad_to_max_length=True), slots(group_by_length=True), slots(packing=True)
    tokens = int(read(inputs.train_file, line_by_line=True, max_seq_length=64).lengths().sum())
    assert tokens <= grouped < padded
    assert packed < padded


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_fits_and_keeps_all(lengths: list[int]) -> None:
    members, starts = packing.pack(np.array(lengths), 20)
    assert sorted(members.tolist()) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in members[first:end]) for first, end in itertools.pairwise(starts)]
    assert max(loads) <= 20
    assert all(a + b > 20 for a, b in itertools.combinations(loads, 2)), "two rows would have fitted into one"


def mask(
    tokens: Any, vocabulary: Vocabulary, kind: Any, rate: float, *, seed: int = 3, sequence: int = 0
) -> tuple[Any, Any]:
    """One sequence alone."""
    at = np.arange(len(tokens))
    draws = masking.draw(seed, 0, np.array([sequence]), np.array([len(tokens)]), at)
    return masking.mask(tokens, at, draws, vocabulary, kind, rate)


@pytest.mark.parametrize("kind", ["token", "whole_word", "ngram"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_masked_rate_is_the_one_asked_for(vocabulary: Vocabulary, kind: Any, rate: float) -> None:
    tokens = np.random.default_rng(3).integers(5, vocabulary.size, 100_000)
    tokens[::50] = vocabulary.bos
    inputs, chosen = mask(tokens, vocabulary, kind, rate)
    plain = 100_000 - 2000
    assert len(chosen) / plain == pytest.approx(rate, rel=0.05)
    assert not np.isin(chosen, np.arange(0, 100_000, 50)).any()
    assert (inputs[chosen] == vocabulary.mask).mean() == pytest.approx(0.8, abs=0.01)
    assert (inputs[chosen] == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.01)
    random = inputs[chosen][(inputs[chosen] != vocabulary.mask) & (inputs[chosen] != tokens[chosen])]
    assert random.mean() == pytest.approx(vocabulary.size / 2, rel=0.1)
    assert random.min() < 10
    assert random.max() >= vocabulary.size - 10
    untouched = np.setdiff1d(np.arange(100_000), chosen)
    assert np.array_equal(inputs[untouched], tokens[untouched])


def test_the_recipes_spans_are_those_of_its_loops(vocabulary: Vocabulary) -> None:
    """Started at 15 % of the tokens and extended one by one until another one starts; told as what that comes to."""
    tokens = np.full(200_000, vocabulary.size - 1)
    _, chosen = mask(tokens, vocabulary, "ngram_recipe", 0.15)
    assert len(chosen) / len(tokens) == pytest.approx(0.2277, rel=0.02)
    assert masking.expected_rate("ngram_recipe", 0.15) == pytest.approx(0.2277, abs=1e-4)
    draws = masking.draw(3, 0, np.array([0]), np.array([len(tokens)]), np.arange(len(tokens))) / 2.0**64
    starts = draws < 0.15
    expected = starts.copy()
    for start in np.flatnonzero(starts).tolist():
        length = 3 if draws[start] < 0.15 * 2 / 11 else 2 if draws[start] < 0.15 * 5 / 11 else 1
        for position in range(start + 1, min(len(tokens), start + length)):
            if starts[position]:
                break
            expected[position] = True
    assert np.array_equal(chosen, np.flatnonzero(expected))


@pytest.mark.parametrize("kind", ["token", "whole_word", "ngram", "ngram_recipe"])
@given(lengths=st.lists(st.integers(1, 40), max_size=8), seed=st.integers(0, 2**32 - 1))
def test_a_batch_masks_each_sequence_as_if_alone(
    vocabulary: Vocabulary, kind: Any, lengths: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, vocabulary.size, length) for length in lengths]
    numbers = rng.permutation(1000)[: len(parts)]
    at = np.concatenate([np.empty(0, np.int64), *(np.arange(length) for length in lengths)])
    tokens = np.concatenate([np.empty(0, np.int64), *parts])
    draws = masking.draw(seed, 0, numbers, np.array(lengths, np.int64), at)
    inputs, chosen = masking.mask(tokens, at, draws, vocabulary, kind, 0.4)
    alone = [mask(part, vocabulary, kind, 0.4, seed=seed, sequence=n) for part, n in zip(parts, numbers, strict=True)]
    starts = np.cumsum([0, *lengths])
    assert inputs.tolist() == [token for part, _ in alone for token in part.tolist()]
    assert chosen.tolist() == [at + start for (_, part), start in zip(alone, starts, strict=False) for at in part]


def test_draws_of_neighbours_are_independent() -> None:
    """Sequences, epochs and seeds that differ by one, and tokens side by side."""
    at = np.tile(np.arange(20_000), 2)
    lengths, numbers = np.array([20_000, 20_000]), np.array([6, 7])
    first, second = masking.draw(1, 2, numbers, lengths, at).reshape(2, -1)
    epoch = masking.draw(1, 3, numbers, lengths, at)[:20_000]
    seed = masking.draw(2, 2, numbers, lengths, at)[:20_000]
    for other in (second, epoch, seed, np.roll(first, 1)):
        low = np.corrcoef((first & np.uint64(0xFFFFFFFF)).astype(float), (other & np.uint64(0xFFFFFFFF)).astype(float))
        assert abs(np.corrcoef(first / 2.0**64, other / 2.0**64)[0, 1]) < 0.03
        assert abs(low[0, 1]) < 0.03
    assert first.mean() / 2.0**64 == pytest.approx(0.5, abs=0.01)


def test_spans_have_the_wanted_lengths(vocabulary: Vocabulary) -> None:
    tokens = np.full(1_000_000, vocabulary.size - 1)
    _, chosen = mask(tokens, vocabulary, "ngram", 0.01)
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
    lengths = np.bincount([len(run) for run in runs])[1:4] / len(runs)
    # At a low rate spans hardly touch, so runs are spans.
    assert lengths == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.02)


def test_whole_words_are_masked_as_one(vocabulary: Vocabulary, inputs: Inputs) -> None:
    text = inputs.train_file.read_text()[:20_000]
    tokens = np.array(vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)
    _, chosen = mask(tokens, vocabulary, "whole_word", 0.3)
    is_chosen = np.isin(np.arange(len(tokens)), chosen)
    goes_on = ~vocabulary.starts_word_V[tokens][1:]
    assert goes_on.sum() > 1000
    assert np.array_equal(is_chosen[1:][goes_on], is_chosen[:-1][goes_on])
