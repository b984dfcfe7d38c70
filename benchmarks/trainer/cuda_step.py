"""Measures training steps on a CUDA device against stock, bf16 on both sides, by every attention that runs there."""

from __future__ import annotations

from typing import Any, Final

import torch

from benchmarks.report import Line, median
from benchmarks.timing import Effort, interleave, span
from benchmarks.trainer import baseline
from benchmarks.trainer.baseline import must_agree
from benchmarks.trainer.step_speed import losses_apart
from trainer.attention import module as attention
from trainer.data.loader import Batch
from trainer.device import Device
from trainer.dist_env import Place

_SIZES: Final = ((8, 512, 3), (4, 4096, 6))
_WARM_TURNS: Final = 3


def gpu_lines(effort: Effort) -> list[Line]:
    if not torch.cuda.is_available():
        return [Line(_name(rows, length), None, "tokens/s", why="no GPU here") for rows, length, _ in _SIZES]
    return [line for rows, length, wanted in _SIZES for line in _lines(baseline.batch(rows, length), wanted, effort)]


def _lines(batch: Batch, wanted: int, effort: Effort) -> list[Line]:
    rows, length = batch.input_ids_BL.shape
    # Compared before they have trained, which gives each weights of its own.
    stock, ours = baseline.models(effort.layers, "cuda")
    batch = batch.to(Device("cuda", torch.device("cuda"), Place(0, 0, 1)))
    choices = list(attention.candidates("cuda"))
    acts = {"stock": _turn(stock, lambda: baseline.stock_loss(stock, batch))}
    proofs: dict[str, str] = {}
    for choice in choices:
        _take(ours, choice)
        proofs[choice] = must_agree(f"step with {choice}", losses_apart(stock, ours, batch), 1e-3)
        acts[choice] = _turn(ours, lambda: baseline.our_loss(ours, batch), choice)
    interleave(_WARM_TURNS, acts)
    times = interleave(5 * effort.cheap_turns, acts)
    rates = {side: [batch.num_tokens / s for s in seconds] for side, seconds in times.items()}
    return [
        Line(
            _name(rows, length) if choice == choices[0] else f"{_name(rows, length)}, by {choice}",
            median(rates[choice]),
            "tokens/s",
            # Only the one that training takes has to meet a target; the others show whether it is the right one.
            target=wanted * median(rates["stock"]) if choice == choices[0] else None,
            better="higher",
            baseline=median(rates["stock"]),
            spread=f"{span(rates[choice])}; baseline {span(rates['stock'])}; n={len(times[choice])}",
            note=f"target: {wanted}×; attention by {choice}; {torch.cuda.get_device_name()}; loss without dropout: {proofs[choice]}",
        )
        for choice in choices
    ]


def _turn(module: torch.nn.Module, loss: Any, choice: str | None = None) -> Any:
    step = baseline.stepper(module)

    def act() -> None:
        if choice is not None:
            _take(module, choice)
        step(loss, torch.autocast("cuda", torch.bfloat16))
        torch.cuda.synchronize()

    return act


def _take(ours: Any, choice: str) -> None:
    attend = attention.candidates("cuda")[choice]
    for layer in ours.network.longformer.encoder.layer:
        layer.attention.self.attend = attend


def _name(rows: int, length: int) -> str:
    return f"on a GPU, bf16, {rows}×{length}: tokens a second against stock"
