"""Measures whole training steps, optimizer included, and what reporting adds to one."""

from __future__ import annotations

import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Line
from benchmarks.timing import Effort, interleave, won
from benchmarks.trainer import baseline
from benchmarks.trainer.baseline import must_agree
from trainer.data.loader import Batch
from trainer.dist_env import Place
from trainer.model import MaskedLanguageModel
from trainer.report import Reporter

_REPORTS = 300


def step_lines(effort: Effort) -> list[Line]:
    """fp32 and bf16 of ours against fp32 of stock, all three in turn; then reporting against the shortest of our steps."""
    stock, ours = baseline.models(effort.layers)
    steps = {"stock": baseline.stepper(stock), "ours": baseline.stepper(ours)}
    has_bf16 = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    lines: list[Line] = []
    shortest_s = float("inf")
    cases = [
        (baseline.batch(rows, length), *wanted) for rows, length, *wanted in ((1, effort.long, 3, 5), (2, 512, 1.7, 3))
    ]
    # Before the first step: from then on the two have weights of their own.
    proofs = [must_agree("step", losses_apart(stock, ours, batch), 1e-4) for batch, *_ in cases]
    for (batch, wanted, wanted_bf16), proof in zip(cases, proofs, strict=True):
        size = "×".join(map(str, batch.input_ids_BL.shape))
        acts = {
            "stock": lambda batch=batch: steps["stock"](lambda: baseline.stock_loss(stock, batch)),
            "ours": lambda batch=batch: steps["ours"](lambda: baseline.our_loss(ours, batch)),
        }
        if has_bf16:
            acts["bf16"] = lambda batch=batch: steps["ours"](
                lambda: baseline.our_loss(ours, batch), torch.autocast("cpu", torch.bfloat16)
            )
        times = interleave(effort.turns, acts)
        shortest_s = min(shortest_s, *times["ours"], *times.get("bf16", []))
        note = f"target: {wanted}×; loss without dropout: {proof}"
        lines.append(won(f"whole step fp32, {size}", times["ours"], times["stock"], wanted=wanted, note=note))
        name = f"whole step bf16 against stock fp32, {size}"
        if has_bf16:
            lines.append(won(name, times["bf16"], times["stock"], wanted=wanted_bf16, note=f"target: {wanted_bf16}×"))
        else:
            lines.append(Line(name, None, "s", why="this CPU has no bf16 products"))
    return [*lines, _report_line(shortest_s)]


def losses_apart(stock: Any, ours: MaskedLanguageModel, batch: Batch) -> float:
    """How far the two losses are from each other without dropout, relative to stock's."""
    with torch.no_grad():
        theirs, mine = float(baseline.stock_loss(stock.eval(), batch)), float(baseline.our_loss(ours.eval(), batch))
    stock.train()
    ours.train()
    return abs(mine - theirs) / theirs


def _report_line(step_s: float) -> Line:
    """A report and a sign of life after every step, which is more than any preset asks for."""
    names = "loss step_time data_time samples_per_second tokens_per_second masked_rate learning_rate grad_norm epoch memory_bytes"
    values: dict[str, float] = dict.fromkeys(names.split(), 1.2345)
    with tempfile.TemporaryDirectory() as directory:
        # Not the first rank's terminal, but its files.
        with Reporter(Path(directory), Place(0, 0, 1)) as reporter, open("/dev/null", "w", encoding="utf-8") as nowhere:
            reporter.plan(_REPORTS, step=0)
            seconds = _reporting_s(reporter, values, nowhere)
        written = (Path(directory) / "metrics.jsonl").read_bytes().count(b"\n")
    if written != _REPORTS:
        raise RuntimeError(f"{written} of {_REPORTS} reports were written")
    return Line(
        "reporting after every step",
        seconds / _REPORTS * 1e6,
        "µs",
        target=0.01 * step_s * 1e6,
        note=f"target: 1 % of the shortest step of ours above, {step_s:.2f} s; files as training writes them",
    )


def _reporting_s(reporter: Reporter, values: dict[str, float], nowhere: Any) -> float:
    with redirect_stdout(nowhere):
        began = time.perf_counter()
        for step in range(1, _REPORTS + 1):
            reporter.stepped(step)
            reporter.metrics(step, values)
        return time.perf_counter() - began
