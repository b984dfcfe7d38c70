"""Owns which self-attention a Longformer runs with. The rest of the trainer does not know which one it is.

Shapes: B sequences, L tokens, E hidden size, H heads, D head size, G global tokens.
"""

import importlib
import importlib.util
import math
import shutil
import sysconfig
from pathlib import Path
from typing import Any, Protocol, Self, cast

import torch
import torch.nn.functional as F
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM, LongformerSelfAttention

from trainer.attention import banded, dropout, npu
from trainer.attention.banded import Dropout, Mask


class Implementation(Protocol):
    """Windowed attention over projected heads, B×H×L×D each; see `banded.attend`."""

    def __call__(
        self,
        q_BHLD: torch.Tensor,
        k_BHLD: torch.Tensor,
        v_BHLD: torch.Tensor,
        reach: int,
        mask: Mask,
        dropout: Dropout | None = None,
    ) -> torch.Tensor: ...


def candidates(device_type: str) -> dict[str, Implementation]:
    """What runs on a device, by name; the first is what `install` takes."""
    if device_type == "npu":
        return {"npu": npu.attend}
    # Plain torch: right on every device, and tuned for CPUs.
    plain: dict[str, Implementation] = {"banded": banded.attend}
    if device_type == "cuda" and _triton_runs():
        return {"cuda": importlib.import_module("trainer.attention.cuda").attend} | plain
    return plain


def install(network: LongformerForMaskedLM, device_type: str) -> str:
    """Resolves the implementation for a device once and puts it into every layer of a loaded Longformer.

    The parameters and their names stay what they are, so checkpoints are those of stock Longformer.
    Returns the implementation's name.
    """
    name, attend = next(iter(candidates(device_type).items()))
    for layer in _layers(network):
        layer.attention.self = WindowedSelfAttention.adopt(layer.attention.self, attend)
    return name


def separate(network: LongformerForMaskedLM, segments_BL: torch.Tensor, *, packed: bool) -> None:
    """Says for the next forward where segments of a batch lie; 0 is padding.

    Packed ones do not see each other. Otherwise a row is one segment and its padding, which the mask hides already.
    """
    layers = _layers(network)
    # Only the NPU needs the ends as numbers: one wait for the device a step rather than one a layer.
    needs_ends = layers[0].attention.self.attend is npu.attend
    ends = _ends(segments_BL) if needs_ends else None
    for layer in layers:
        layer.attention.self.segments_BL = segments_BL if packed else None
        layer.attention.self.ends = ends


class WindowedSelfAttention(LongformerSelfAttention):
    """Stock Longformer's self-attention for any length, in O(L·window) time and O(L) memory."""

    attend: Implementation
    segments_BL: torch.Tensor | None  # noqa: N815
    ends: tuple[int, ...] | None

    @classmethod
    def adopt(cls, stock: LongformerSelfAttention, attend: Implementation = banded.attend) -> Self:
        """Takes over a stock module's parameters as they are."""
        module = cls.__new__(cls)
        module.__dict__ = stock.__dict__
        module.attend = attend
        module.segments_BL = module.ends = None
        return module

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        is_index_masked: torch.Tensor,
        is_index_global_attn: torch.Tensor,
        is_global_attn: bool,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """hidden_states B×L×E; attention_mask B×L: below 0 masked, 0 local, above 0 global. Returns (B×L×E,)."""
        if output_attentions:
            return cast(
                tuple[torch.Tensor, ...],
                super().forward(
                    hidden_states, attention_mask, is_index_masked, is_index_global_attn, is_global_attn, True
                ),
            )
        mask = _mask(attention_mask, is_index_global_attn, is_global_attn)
        mask = mask._replace(segments_BL=self.segments_BL, ends=self.ends)
        # The query's scale goes into the weights, which are fewer than the queries.
        scale = 1 / math.sqrt(self.head_dim)
        q_BLE = F.linear(hidden_states, self.query.weight * scale, self.query.bias * scale)
        q_BHLD, k_BHLD, v_BHLD = (
            x_BLE.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x_BLE in (q_BLE, self.key(hidden_states), self.value(hidden_states))
        )
        out_BHLD = self.attend(q_BHLD, k_BHLD, v_BHLD, self.one_sided_attn_window_size, mask, self._dropout())
        out_BLE = out_BHLD.transpose(1, 2).flatten(2)
        if mask.hidden_BL is not None:
            out_BLE = out_BLE.masked_fill(is_index_masked.unsqueeze(-1), 0.0)
        if mask.global_BG is not None:
            out_BLE = self._overwrite_global(out_BLE, hidden_states, mask, is_index_masked)
        return (out_BLE,)

    def _dropout(self) -> Dropout | None:
        return None if not self.training or self.dropout == 0 else dropout.new(self.dropout)

    def _overwrite_global(
        self, out_BLE: torch.Tensor, hidden_BLE: torch.Tensor, mask: Mask, is_masked_BL: torch.Tensor
    ) -> torch.Tensor:
        assert mask.global_BG is not None
        index_BGE = mask.global_BG.unsqueeze(-1).expand(-1, -1, hidden_BLE.shape[2])
        rows_BGE = self._global_rows(hidden_BLE, hidden_BLE.gather(1, index_BGE), is_masked_BL).to(out_BLE.dtype)
        if mask.unused_BG is None:
            return out_BLE.scatter(1, index_BGE, rows_BGE)
        batch, slot = (~mask.unused_BG).nonzero(as_tuple=True)
        return out_BLE.index_put((batch, mask.global_BG[batch, slot]), rows_BGE[batch, slot])

    def _global_rows(
        self, hidden_BLE: torch.Tensor, global_BGE: torch.Tensor, is_masked_BL: torch.Tensor
    ) -> torch.Tensor:
        """Full attention of the global tokens with projections of their own.

        A key enters a score only through its product with a query, so the query is projected backwards instead: no
        L×E keys or values are made for a few queries.
        """
        heads = (self.num_heads, self.head_dim)
        key, value = self.key_global, self.value_global
        q_BGHD = self.query_global(global_BGE).unflatten(-1, heads) / math.sqrt(self.head_dim)
        folded_BGHE = torch.einsum("bghd,hde->bghe", q_BGHD, key.weight.unflatten(0, heads))
        bias_BGH = torch.einsum("bghd,hd->bgh", q_BGHD, key.bias.unflatten(0, heads))
        scores_BGHL = torch.einsum("bghe,ble->bghl", folded_BGHE, hidden_BLE) + bias_BGH.unsqueeze(-1)
        lowest = torch.finfo(scores_BGHL.dtype).min
        scores_BGHL = scores_BGHL.masked_fill(is_masked_BL[:, None, None], lowest)
        dtype = torch.promote_types(scores_BGHL.dtype, torch.float32)
        probabilities = scores_BGHL.softmax(-1, dtype=dtype).to(scores_BGHL.dtype)
        probabilities = F.dropout(probabilities, self.dropout, self.training)
        seen_BGHE = torch.einsum("bghl,ble->bghe", probabilities, hidden_BLE)
        out_BGHD = torch.einsum("bghe,hde->bghd", seen_BGHE, value.weight.unflatten(0, heads))
        # Under dropout the probabilities no longer sum to one, and the bias is weighed by what is left.
        out_BGHD = out_BGHD + probabilities.sum(-1, keepdim=True) * value.bias.unflatten(0, heads)
        return out_BGHD.flatten(2)


def _triton_runs() -> bool:
    """Triton comes with torch's CUDA builds only. It builds its launcher with a C compiler at the first launch."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    builds = (shutil.which("gcc") or shutil.which("clang")) and header.exists()
    return bool(
        builds
        and importlib.util.find_spec("triton")
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 0)
    )


def _mask(attention_mask_BL: torch.Tensor, is_global_BL: torch.Tensor, has_global: bool) -> Mask:
    hidden_BL = attention_mask_BL != 0
    # On a CPU looking is cheaper than masking; on a device it would wait for the queue to drain.
    hides = hidden_BL.device.type != "cpu" or bool(hidden_BL.any())
    if not has_global:
        return Mask(hidden_BL if hides else None)
    counts_B = is_global_BL.sum(1)
    most = int(counts_B.max())
    # A stable sort brings each sequence's global positions to the front, in order.
    global_BG = is_global_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    unused_BG = torch.arange(most, device=counts_B.device) >= counts_B[:, None]
    return Mask(hidden_BL, global_BG, unused_BG if bool(unused_BG.any()) else None)


def _ends(segments_BL: torch.Tensor) -> tuple[int, ...]:
    """Where each run of one segment ends, in the rows laid end to end: ascending, the last is B·L."""
    last_BL = torch.ones_like(segments_BL, dtype=torch.bool)
    last_BL[:, :-1] = segments_BL[:, :-1] != segments_BL[:, 1:]
    return tuple((last_BL.flatten().nonzero().flatten() + 1).tolist())


def _layers(network: LongformerForMaskedLM) -> list[Any]:
    return list(network.longformer.encoder.layer)
