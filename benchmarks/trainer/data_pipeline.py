"""Measures the way from text to batches: packed paragraphs against padded ones, n-gram masks against the recipe's loops."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import numpy as np
import torch

from benchmarks.report import Line, median
from benchmarks.timing import Effort, interleave, span, won
from benchmarks.trainer import baseline, reference_masking
from benchmarks.trainer.baseline import must_agree
from trainer.data import dataset, loader, masking, sampler, tokenizer
from trainer.data.dataset import Sequences
from trainer.data.loader import Batch
from trainer.data.tokenizer import Vocabulary
from trainer.model import MaskedLanguageModel
from trainer.spec.config import RunConfig

ROOT: Final = Path(__file__).resolve().parents[2]
LENGTH: Final = 512
# So many full rows are packed; the same paragraphs padded are some twelve times as many.
PACKED_ROWS, ROWS_A_BATCH = 8, 8
# Batches that a turn of masking takes.
BATCHES = 20


def packing_lines(effort: Effort) -> list[Line]:
    """The same paragraphs of CPython's help texts, every one once, with the same masks."""
    layers = min(2, effort.layers)
    stock, padded_model = baseline.models(layers)
    packed_model = MaskedLanguageModel(padded_model.network, "cpu", packing=True).train()
    vocabulary = tokenizer.load(ROOT / "examples" / "lf_token")
    with tempfile.TemporaryDirectory() as directory:
        sequences = _paragraphs(vocabulary, Path(directory))
        padded, packed = (_batches(sequences, vocabulary, packing=packing) for packing in (False, True))
    proof = _same_losses(stock, padded_model, padded, packed_model, packed)
    tokens = int(sequences.lengths().sum())
    share = 1 - tokens / len(sequences) / LENGTH
    acts = {
        "stock": lambda: [(baseline.stock_loss(stock, batch) * batch.num_labels).backward() for batch in padded],
        "padded": lambda: [padded_model(batch).backward() for batch in padded],
        "packed": lambda: [packed_model(batch).backward() for batch in packed],
    }
    times = interleave(effort.turns, acts)
    rates = {side: [tokens / s for s in seconds] for side, seconds in times.items()}
    note = (
        f"target: 8×; {len(sequences)} paragraphs, {share:.0%} of the padded tokens are padding; forward and backward, "
        f"{layers} layers; loss a real token without dropout: {proof}"
    )
    return [
        Line(
            f"real tokens a second on paragraphs, packed against {told} padded to {LENGTH}",
            median(rates["packed"]),
            "tokens/s",
            target=8 * median(rates[side]),
            better="higher",
            baseline=median(rates[side]),
            spread=f"{span(rates['packed'])}; baseline {span(rates[side])}; n={effort.turns}",
            note=note,
        )
        for side, told in (("stock", "stock"), ("padded", "ours"))
    ]


def ngram_line(effort: Effort) -> Line:
    """The same rule on both sides, the recipe's; ours with the keyed draws that training uses."""
    rows, rate = 16, baseline.MASKED_SHARE
    special = np.arange(1000) < 5
    unused: Any = None
    vocabulary = Vocabulary(unused, Path(), "", 1000, special, special, bos=0, pad=1, eos=2, unk=3, mask=4)
    tokens = np.random.default_rng(2).integers(5, 1000, rows * LENGTH)
    at, lengths = np.tile(np.arange(LENGTH), rows), np.full(rows, LENGTH)
    token_rows = torch.from_numpy(tokens.reshape(rows, LENGTH))
    specials = torch.zeros(rows, LENGTH, dtype=torch.bool)

    def ours(batch: int = 0) -> float:
        draws = masking.draw(1, 0, np.arange(batch * rows, (batch + 1) * rows), lengths, at)
        return len(masking.mask(tokens, at, draws, vocabulary, "ngram_recipe", rate)[1]) / len(tokens)

    def loops() -> float:
        chosen = reference_masking.mask_ngrams(token_rows, specials, rate=rate, mask_id=4, vocab_size=1000)[1]
        return float(chosen.float().mean())

    shares = [float(np.mean([act() for _ in range(5)])) for act in (lambda: ours(int(torch.randint(9, ()))), loops)]
    must_agree("masked share", abs(shares[0] - shares[1]), 0.02)
    # A loader masks batch after batch: one alone, after everything else a turn does, would be timed with cold caches.
    times = interleave(
        effort.cheap_turns,
        {
            "loops": lambda: [loops() for _ in range(BATCHES)],
            "ours": lambda: [ours(batch) for batch in range(BATCHES)],
        },
    )
    note = (
        f"target: 300×; both mask by the recipe's rule: {shares[0]:.1%} and {shares[1]:.1%} of the tokens at {rate:.0%}"
    )
    return won(
        f"n-gram masking of {BATCHES} batches of {rows}×{LENGTH}", times["ours"], times["loops"], wanted=300, note=note
    )


def _paragraphs(vocabulary: Vocabulary, directory: Path) -> Sequences:
    """As many paragraphs in random order as fill the packed rows, tokenized as line_by_line does."""
    blocks = [" ".join(block.split()) for text in topics.values() for block in text.split("\n\n") if block.strip()]
    lines = [blocks[i] for i in np.random.default_rng(8).permutation(len(blocks))]
    path = directory / "paragraphs.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    sequences = dataset.read(path, "train_file", _config(packing=True), vocabulary, directory, lambda _: None)
    sequences = replace(sequences, tokens_T=np.array(sequences.tokens_T), starts_N1=np.array(sequences.starts_N1))
    count = int(np.searchsorted(sequences.starts_N1, PACKED_ROWS * LENGTH, "right")) - 1
    while len(sampler.arrange(_first(sequences, count), _config(packing=True))) > PACKED_ROWS:
        count -= 1
    return _first(sequences, count)


def _first(sequences: Sequences, count: int) -> Sequences:
    return replace(sequences, starts_N1=sequences.starts_N1[: count + 1])


def _batches(sequences: Sequences, vocabulary: Vocabulary, *, packing: bool) -> list[Batch]:
    config = _config(packing=packing)
    return list(loader.eval_batches(sampler.arrange(sequences, config), vocabulary, config, baseline.here()))


def _config(*, packing: bool) -> RunConfig:
    return RunConfig(
        config_name="/",
        tokenizer_name="/",
        train_file="/",
        do_eval=False,
        line_by_line=True,
        pad_to_max_length=True,
        max_seq_length=LENGTH,
        packing=packing,
        per_device_eval_batch_size=ROWS_A_BATCH,
    )


def _same_losses(
    stock: Any,
    padded_model: MaskedLanguageModel,
    padded: Sequence[Batch],
    packed_model: MaskedLanguageModel,
    packed: Sequence[Batch],
) -> str:
    for module in (stock, padded_model, packed_model):
        module.eval()
    with torch.no_grad():
        theirs = sum(float(baseline.stock_loss(stock, batch)) * batch.num_labels for batch in padded)
        ours = [sum(float(m(b)) for b in batches) for m, batches in ((padded_model, padded), (packed_model, packed))]
    for module in (stock, padded_model, packed_model):
        module.train()
    return must_agree("packing", max(abs(loss - theirs) / theirs for loss in ours), 1e-5)
