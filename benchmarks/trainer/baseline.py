"""Owns the two sides of the trainer's bench: stock transformers and ours, on the same weights, batches and dropout rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM

from trainer.data.loader import IGNORED, Batch
from trainer.device import Device, seed_all
from trainer.dist_env import Place
from trainer.model import MaskedLanguageModel

VOCAB_SIZE: Final = 50_265
HIDDEN: Final = 768
MASKED_SHARE: Final = 0.15


def config(layers: int, **options: Any) -> LongformerConfig:
    """The base model's: 768 wide, 12 heads, window 512, dropout 0.1; positions for 4,096 tokens."""
    base: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 4098,
        "attention_window": [512] * layers,
    }
    return LongformerConfig(num_hidden_layers=layers, type_vocab_size=1, **base | options)


def models(layers: int, device_type: str = "cpu", **options: Any) -> tuple[Any, MaskedLanguageModel]:
    """Stock's and ours, with the same weights, in training mode."""
    seed_all(7)
    stock: Any = LongformerForMaskedLM(config(layers, **options))
    stock.train().to(device_type)
    ours = MaskedLanguageModel(copy.deepcopy(stock), device_type, packing=False).train()
    return stock, ours


def batch(rows: int, length: int) -> Batch:
    """Whole rows of random tokens, 15 % of them to predict."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    at = (torch.rand(rows * length, generator=generator) < MASKED_SHARE).nonzero().flatten()
    positions = (torch.arange(length) + 2).expand(rows, -1)
    return Batch(ids, positions, torch.ones_like(ids), at, ids.flatten()[at], rows, rows * length, len(at))


def dense_labels(step: Batch) -> torch.Tensor:
    """A label for every token, as stock wants them: B×L."""
    labels = torch.full((step.input_ids_BL.numel(),), IGNORED, device=step.labels_M.device)
    labels[step.label_positions_M] = step.labels_M
    return labels.view_as(step.input_ids_BL)


def stock_loss(network: Any, step: Batch) -> torch.Tensor:
    """The mean over the labels."""
    # Stock would number positions from the ids, where a random <pad> counts as padding.
    return network(
        input_ids=step.input_ids_BL,
        attention_mask=(step.segments_BL > 0).long(),
        position_ids=step.position_ids_BL,
        labels=dense_labels(step),
    ).loss


def our_loss(model: MaskedLanguageModel, step: Batch) -> torch.Tensor:
    """The mean over the labels."""
    return model(step) / step.num_labels


def stepper(module: torch.nn.Module) -> Callable[..., None]:
    """What takes a whole step of a loss, optimizer included."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step(loss: Callable[[], torch.Tensor], autocast: AbstractContextManager[Any] | None = None) -> None:
        seed_all(1)
        with autocast or nullcontext():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def here() -> Device:
    return Device("cpu", torch.device("cpu"), Place(0, 0, 1))


def apart(ours: torch.Tensor, stock: torch.Tensor) -> float:
    """The largest difference, relative to stock's largest value."""
    return float((ours - stock).abs().max() / stock.abs().max())


def must_agree(what: str, difference: float, limit: float) -> str:
    """The figure of a side that computes something else is none. Returns what was found, in words.

    Raises RuntimeError.
    """
    if not difference <= limit:
        raise RuntimeError(f"{what}: the two sides differ by {difference:.1e}, more than {limit:.0e}")
    return f"results differ by {difference:.0e}"
