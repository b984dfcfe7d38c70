"""Measures the trainer against stock transformers in the same run: `python -m benchmarks.trainer [--quick]`.

Both sides take turns, and each shows its fastest turn: on a shared machine the others tell of its neighbours.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import (
    LongformerEncoder,
    LongformerForMaskedLM,
    LongformerSelfAttention,
)

from benchmarks.table import Line, number, show, write_json
from trainer import data, masking
from trainer.attention import WindowedSelfAttention, install
from trainer.corpus import Sequences
from trainer.data import Batch
from trainer.device import Device, Place, seed_all
from trainer.model import MaskedLanguageModel
from trainer.report import Reporter
from trainer.tokenizer import Vocabulary

VOCAB_SIZE: Final = 50_265
MASKED_SHARE: Final = 0.15
Act = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured: a model of so many layers, each side so many turns."""

    layers: int
    turns: int
    long: int


FULL, QUICK = Effort(layers=12, turns=3, long=4096), Effort(layers=1, turns=1, long=1024)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./run bench trainer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one layer instead of twelve, fewer turns")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--peak", choices=("stock", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    effort = QUICK if arguments.quick else FULL
    if arguments.peak:
        _print_peak(arguments.peak, effort)
        return 0
    parts: list[Callable[[], list[Line]]] = [
        lambda: _attention_lines(effort),
        lambda: _step_lines(effort),
        lambda: [_memory_line(effort, quick=arguments.quick)],
        lambda: [_head_line(effort), _packing_line(), _length_line(effort)],
        lambda: [_ngram_line(), _parity_line(), _report_line(), *_gpu_lines()],
    ]
    lines = [line for part in tqdm(parts, desc="measuring", disable=not sys.stderr.isatty()) for line in part()]
    facts = {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "model": f"{effort.layers} layers, 768 wide",
    }
    show(lines, title="Trainer, against stock transformers", facts=facts)
    if arguments.json:
        write_json(lines, arguments.json)
    return 0


def _attention_lines(effort: Effort) -> list[Line]:
    config = _config(1)
    stock: Any = LongformerSelfAttention(config, 0)
    ours = WindowedSelfAttention.adopt(copy.deepcopy(stock))
    lines: list[Line] = []
    for batch, length in ((1, effort.long), (8, 512)):
        hidden = torch.randn(batch, length, config.hidden_size, requires_grad=True)
        mask = torch.zeros(batch, length)

        def turn(module: Any, hidden: torch.Tensor = hidden, mask: torch.Tensor = mask) -> None:
            module(hidden, mask, mask < 0, mask > 0, False)[0].sum().backward()

        lines.append(
            _race(
                f"attention forward + backward, {batch}×{length}, dropout 0.1",
                effort.turns,
                lambda turn=turn: turn(stock),
                lambda turn=turn: turn(ours),
                wanted=4,
            )
        )
    return lines


def _step_lines(effort: Effort) -> list[Line]:
    stock: Any = LongformerForMaskedLM(_config(effort.layers)).train()
    ours = MaskedLanguageModel(copy.deepcopy(stock), "cpu", packing=False).train()
    lines: list[Line] = []
    for (batch, length), wanted, wanted_bf16 in (((1, effort.long), 3, 5), ((2, 512), 1.7, 3)):
        step = _batch(batch, length)
        first, second = _stepper(stock), _stepper(ours)
        stock_step = lambda first=first, step=step: first(lambda: _stock_loss(stock, step))  # noqa: E731
        fp32 = lambda second=second, step=step: second(lambda: ours(step))  # noqa: E731
        lines.append(_race(f"whole step fp32, {batch}×{length}", effort.turns, stock_step, fp32, wanted=wanted))
        name = f"whole step bf16 against stock fp32, {batch}×{length}"
        if not torch.cpu._is_avx512_bf16_supported():  # pyright: ignore[reportPrivateUsage]
            lines.append(Line(name, None, "s", why="this CPU has no bf16 products"))
            continue

        def bf16(second: Any = second, step: Batch = step) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                second(lambda: ours(step))

        lines.append(_race(name, effort.turns, stock_step, bf16, wanted=wanted_bf16))
    return lines


def _memory_line(effort: Effort, *, quick: bool) -> Line:
    """Two processes, because a process's peak never goes down."""
    peaks: dict[str, float] = {}
    for side in ("stock", "ours"):
        command = [sys.executable, "-m", "benchmarks.trainer", "--peak", side, *(["--quick"] if quick else [])]
        peaks[side] = float(subprocess.run(command, capture_output=True, check=True).stdout) / 2**20
    wanted = 0.45 * peaks["stock"]
    name = f"peak memory of a step, 1×{effort.long}"
    return Line(name, peaks["ours"], "MiB", target=wanted, baseline=peaks["stock"], note="target: 45 % of stock")


def _head_line(effort: Effort) -> Line:
    network: Any = LongformerForMaskedLM(_config(1))
    step = _batch(4, 512)
    hidden = torch.randn(4, 512, 768, requires_grad=True)
    labels = _dense_labels(step)

    def stock() -> None:
        cross_entropy(network.lm_head(hidden).flatten(0, 1), labels).backward()

    def ours() -> None:
        chosen = hidden.flatten(0, 1).index_select(0, step.label_positions_M)
        cross_entropy(network.lm_head(chosen).float(), step.labels_M, reduction="sum").backward()

    return _race("language-modelling head, 4×512", effort.turns, stock, ours, wanted=6)


def _packing_line() -> Line:
    """Real tokens a second on paragraphs: the same sequences and masks, padded to 512 or packed."""
    words = [len(block.split()) for text in topics.values() for block in text.split("\n\n") if block.strip()]
    lengths = np.clip(np.array(words[:32]) * 4 // 3 + 2, 4, 512)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(1).integers(5, 1000, starts[-1]).astype(np.int32)
    sequences = Sequences(tokens, starts, "")
    shape = _config(2, hidden_size=256, num_attention_heads=4, intermediate_size=1024, vocab_size=1000)
    network = LongformerForMaskedLM(shape)
    seconds: dict[bool, float] = {}
    losses: dict[bool, float] = {}
    for packing in (False, True, False, True):
        model = MaskedLanguageModel(copy.deepcopy(network), "cpu", packing=packing).eval()
        began = time.perf_counter()
        total = 0.0
        for batch in _paragraphs(sequences, packing=packing):
            loss = model(batch)
            loss.backward()
            total += float(loss.detach())
        seconds[packing] = min(seconds.get(packing, np.inf), time.perf_counter() - began)
        losses[packing] = total
    rate = {packing: float(starts[-1]) / s for packing, s in seconds.items()}
    apart = abs(losses[True] - losses[False]) / losses[False]
    note = f"target: 8×; losses differ by {apart:.1e}; ours both times"
    name = "real tokens a second on paragraphs, packed against padded to 512"
    return Line(name, rate[True], "tokens/s", target=8 * rate[False], better="higher", baseline=rate[False], note=note)


def _paragraphs(sequences: Sequences, *, packing: bool) -> list[Batch]:
    from trainer.config import RunConfig

    config = RunConfig(
        config_name="/", tokenizer_name="/", train_file="/", do_eval=False, packing=packing, pad_to_max_length=True
    )
    return list(data.eval_batches(data.arrange(sequences, config), _vocabulary(), config, _cpu()))


def _length_line(effort: Effort) -> Line:
    config = _config(1)
    network: Any = LongformerForMaskedLM(config)
    install(network, "cpu")
    encoder: LongformerEncoder = network.longformer.encoder.train()
    longest = effort.long * 4
    costs: dict[int, float] = {}
    for length in (512, longest):
        hidden = torch.randn(max(1, 4096 // length), length, 768, requires_grad=True)
        mask = torch.zeros(hidden.shape[:2])
        seconds = _fastest(effort.turns, lambda h=hidden, m=mask: encoder(h, m, return_dict=True)[0].sum().backward())
        costs[length] = seconds / hidden.shape[0] / length * 1e6
    name, wanted = f"cost per token, one layer, {longest} tokens against 512", 1.15 * costs[512]
    return Line(name, costs[longest], "µs/token", target=wanted, baseline=costs[512], note="target: within 15 %")


def _ngram_line() -> Line:
    vocabulary = _vocabulary()
    rows = np.random.default_rng(2).integers(5, 1000, (16, 512))
    at, sequences, lengths = np.tile(np.arange(512), 16), np.arange(16), np.full(16, 512)

    def ours() -> None:
        draws = masking.draw(7, 0, sequences, lengths, at)
        _, positions = masking.mask(rows.ravel(), at, draws, vocabulary, "ngram", MASKED_SHARE)
        assert 0.1 < len(positions) / rows.size < 0.2

    def loops() -> None:
        rng = np.random.default_rng(3)
        masked = sum(_mask_in_loops(tokens, rng) for tokens in torch.from_numpy(rows.copy()))
        assert 0.1 < masked / rows.size < 0.2

    return _race("n-gram masking of 16×512, against loops as the recipe's", 5, loops, ours, wanted=300)


def _mask_in_loops(tokens: torch.Tensor, rng: np.random.Generator) -> int:
    """The recipe's rule token by token: chosen ones begin spans of 1 to 3, each up to the next chosen one, within a budget of 15 %."""
    chosen = [rng.random() < MASKED_SHARE for _ in range(len(tokens))]
    budget, masked = int(len(tokens) * MASKED_SHARE), 0
    for start in range(len(tokens)):
        if not chosen[start]:
            continue
        for step in range(int(rng.choice(3, p=[6 / 11, 3 / 11, 2 / 11])) + 1):
            position = start + step
            if masked >= budget or position >= len(tokens) or (step and chosen[position]):
                break
            masked += 1
            fate = rng.random()
            if fate < 0.8:
                tokens[position] = 4
            elif fate < 0.9:
                tokens[position] = int(rng.integers(1000))
    return masked


def _parity_line() -> Line:
    config = _config(1, hidden_size=64, num_attention_heads=2)
    config.attention_probs_dropout_prob = 0.0
    stock: Any = LongformerSelfAttention(config, 0)
    ours = WindowedSelfAttention.adopt(copy.deepcopy(stock))
    worst = 0.0
    for length in (512, 1024, 2048, 4096):
        found: list[list[torch.Tensor]] = []
        for module in (stock, ours):
            hidden = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
            mask = torch.zeros(1, length)
            mask[0, [0, 77]], mask[0, -length // 5 :] = 1, -1
            out = module(hidden, mask, mask < 0, mask > 0, True)[0]
            out.square().sum().backward()
            assert hidden.grad is not None
            found.append([out.detach(), hidden.grad])
        worst = max(worst, *(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)))
    return Line("parity with stock, fp32, 512 … 4096, padding and globals", worst, "relative", target=1e-5)


def _report_line() -> Line:
    with tempfile.TemporaryDirectory() as directory, Reporter(Path(directory), Place(1, 1, 2)) as quiet:
        quiet.plan(1, step=0)
        seconds = _fastest(5, lambda: [quiet.stepped(1) for _ in range(100)]) / 100
    values = dict.fromkeys(("loss", "learning_rate", "grad_norm", "step_time", "data_time", "epoch"), 1.0)
    began = time.perf_counter()
    for _ in range(1000):
        json.dumps({"kind": "metrics", "step": 1, "values": values}, allow_nan=False)
    seconds += (time.perf_counter() - began) / 1000
    return Line("reporting a step", seconds * 1e6, "µs", target=1000, note="target: 1 % of a step of 0.1 s")


def _gpu_lines() -> list[Line]:
    why = "no GPU here" if not torch.cuda.is_available() else "not written yet"
    return [
        Line(f"on a GPU, bf16, {size}: tokens a second against stock", None, "tokens/s", why=why)
        for size in ("8×512", "4×4096")
    ]


def _race(name: str, turns: int, stock: Act, ours: Act, *, wanted: float) -> Line:
    theirs, mine = [], []
    for _ in range(turns):
        theirs.append(_fastest(1, stock))
        mine.append(_fastest(1, ours))
    baseline = min(theirs)
    spread = f"{number(min(mine))} … {number(max(mine))}, n={turns}"
    note = f"target: {number(wanted)}×"
    return Line(name, min(mine), "s", target=baseline / wanted, baseline=baseline, spread=spread, note=note)


def _fastest(turns: int, act: Act) -> float:
    seconds: list[float] = []
    for _ in range(turns):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _stepper(module: torch.nn.Module) -> Callable[[Callable[[], torch.Tensor]], None]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step(loss: Callable[[], torch.Tensor]) -> None:
        seed_all(1)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _print_peak(side: str, effort: Effort) -> None:
    network: Any = LongformerForMaskedLM(_config(effort.layers)).train()
    step = _batch(1, effort.long)
    if side == "stock":
        _stepper(network)(lambda: _stock_loss(network, step))
    else:
        ours = MaskedLanguageModel(network, "cpu", packing=False).train()
        _stepper(ours)(lambda: ours(step))
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _stock_loss(network: Any, step: Batch) -> torch.Tensor:
    mask = (step.segments_BL > 0).long()
    return network(
        input_ids=step.input_ids_BL, attention_mask=mask, labels=_dense_labels(step).view_as(step.input_ids_BL)
    ).loss


def _batch(rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    at = (torch.rand(rows * length, generator=generator) < MASKED_SHARE).nonzero().flatten()
    positions = (torch.arange(length) + 2).expand(rows, -1)
    return Batch(ids, positions, torch.ones_like(ids), at, ids.flatten()[at], rows, rows * length, len(at))


def _dense_labels(step: Batch) -> torch.Tensor:
    labels = torch.full((step.input_ids_BL.numel(),), data.IGNORED)
    labels[step.label_positions_M] = step.labels_M
    return labels


def _config(layers: int, **options: Any) -> LongformerConfig:
    base: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 4098,
        "attention_window": [512] * layers,
    }
    return LongformerConfig(num_hidden_layers=layers, type_vocab_size=1, **base | options)


def _cpu() -> Device:
    return Device("cpu", torch.device("cpu"), Place(0, 0, 1))


def _vocabulary() -> Vocabulary:
    special = np.arange(1000) < 5
    unused: Any = None
    return Vocabulary(unused, Path(), "", 1000, special, special, bos=0, pad=1, eos=2, unk=3, mask=4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
