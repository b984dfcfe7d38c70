"""Owns the sliding-window attention on Ascend NPUs, by `torch_npu.npu_fusion_attention`.

Written from torch_npu 2.13's documentation and signatures and run through an emulator of them; never run on a card.
Shapes: B sequences, H heads, L tokens, D head size, G global keys, T = B·L.
"""

import importlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch

from trainer.attention.banded import Dropout, Mask

_EXPLICIT, _BAND = 0, 4
# The side of the triangle that stands for any band: fixed by the operator.
_COMPRESSED = 2048
# Parts of one row of tokens that the operator takes at a time.
_MOST_PARTS = 1024


def attend(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    reach: int,
    mask: Mask,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """As `banded.attend`. The operator draws its own dropout, so only the rate of `dropout` counts.

    Within one window an explicit mask says everything. Beyond it the band mode does; it can hide neither padding nor
    other documents, so all tokens go in as one row whose parts (`mask.ends`) do not see each other, and T, unlike the
    parts, never changes.
    """
    keep = 1.0 - dropout.rate if dropout is not None else 1.0
    if q_BHLD.shape[2] <= 2 * reach and mask.segments_BL is None:
        return _within_one_window(q_BHLD, k_BHLD, v_BHLD, reach, mask, keep)
    call = _Call(q_BHLD.shape[1], reach, keep, mask.ends or _rows(q_BHLD))
    if mask.global_BG is None:
        q, k, v = (_flatten(x) for x in (q_BHLD, k_BHLD, v_BHLD))
        return _unflatten(_near(q, k, v, call).out, q_BHLD)
    index = mask.global_BG[:, None, :, None].expand(-1, q_BHLD.shape[1], -1, q_BHLD.shape[3])
    k_global, v_global = k_BHLD.gather(2, index), v_BHLD.gather(2, index)
    dropped = _not_for_second_call(q_BHLD.shape[2], reach, mask)
    return cast(torch.Tensor, _BandAndGlobal.apply(q_BHLD, k_BHLD, v_BHLD, k_global, v_global, dropped, call))


def _within_one_window(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reach: int, mask: Mask, keep: float
) -> torch.Tensor:
    far_LL = _far(q.shape[2], reach, q.device)
    dropped = far_LL[None, None]
    if mask.hidden_BL is not None:
        dropped = dropped | mask.hidden_BL[:, None, None, :]
    dropped = dropped.expand(q.shape[0], 1, -1, -1)
    if mask.global_BG is not None:
        # A global key is seen from everywhere, once: it leaves the window and stands in the same softmax.
        seen_BL = torch.zeros(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
        used = torch.ones_like(mask.global_BG, dtype=torch.bool) if mask.unused_BG is None else ~mask.unused_BG
        seen_BL = seen_BL.scatter_reduce(1, mask.global_BG, used, "amax")
        dropped = dropped & ~seen_BL[:, None, None, :]
    # What the operator makes of a row without any key is not documented. Nobody reads such a row, so it sees itself.
    dropped = dropped & ~(dropped.all(-1, keepdim=True) & _itself(q.shape[2], q.device))
    options: dict[str, Any] = {"atten_mask": dropped.contiguous(), "sparse_mode": _EXPLICIT}
    return _operator()(q, k, v, head_num=q.shape[1], input_layout="BNSD", scale=1.0, keep_prob=keep, **options)[0]


class _Call(NamedTuple):
    """What both calls of a layer have in common."""

    heads: int
    reach: int
    keep: float
    ends: tuple[int, ...]

    def band(self, device: torch.device) -> dict[str, Any]:
        return {
            "head_num": self.heads,
            "input_layout": "TND",
            "scale": 1.0,
            "keep_prob": self.keep,
            "pre_tockens": self.reach,
            "next_tockens": self.reach,
            # Without a mask the operator ignores the band and attends to everything.
            "atten_mask": _triangle(device),
            "sparse_mode": _BAND,
            "actual_seq_qlen": list(self.ends),
            "actual_seq_kvlen": list(self.ends),
            # By default the statistics of this layout are laid out head by head.
            "softmax_layout": "TND",
        }

    def parts(self) -> Iterator[tuple[slice, "_Call"]]:
        """The same in calls that the operator takes: which tokens, and where their parts end among them.

        It takes 1,024 parts at most. Of more, each call has other lengths from step to step: only rows of very short lines have so many.
        """
        start = 0
        for first in range(0, len(self.ends), _MOST_PARTS):
            ends = self.ends[first : first + _MOST_PARTS]
            yield slice(start, ends[-1]), self._replace(ends=tuple(end - start for end in ends))
            start = ends[-1]

    def globals(self, dropped: torch.Tensor) -> dict[str, Any]:
        return {
            "head_num": self.heads,
            "input_layout": "BNSD",
            "scale": 1.0,
            "keep_prob": self.keep,
            "atten_mask": dropped,
            "sparse_mode": _EXPLICIT,
        }


class _Near(NamedTuple):
    """What the band's calls gave: T×H×D, and T×H×8 twice; the seed, offset and length of each call's dropout."""

    out: torch.Tensor
    softmax_max: torch.Tensor
    softmax_sum: torch.Tensor
    draws: list[tuple[Any, ...]]


def _near(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: _Call) -> _Near:
    found = [_operator()(q[own], k[own], v[own], **part.band(q.device)) for own, part in call.parts()]
    out, top, total = (_joined([result[i] for result in found]) for i in range(3))
    return _Near(out, top, total, [result[4:7] for result in found])


def _near_gradient(
    inputs: list[torch.Tensor], joint: list[torch.Tensor], call: _Call, draws: list[tuple[Any, ...]]
) -> list[torch.Tensor]:
    """The gradients of q, k and v; `inputs` are these three and the output's gradient."""
    found = [
        _gradient()(
            *(x[own] for x in inputs),
            **_for_gradient(part.band(inputs[0].device), [x[own].contiguous() for x in joint], drawn),
        )
        for (own, part), drawn in zip(call.parts(), draws, strict=True)
    ]
    return [_joined([result[i] for result in found]) for i in range(3)]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _BandAndGlobal(torch.autograd.Function):
    """Two calls that are one softmax: the band, and the global keys that lie outside of it.

    Each call returns the maximum and the sum of its exponentials; together they weigh the two outputs. Backward hands
    the operator's own gradient the joint statistics and the joint output, with which each call's share is exact.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_global: torch.Tensor,
        v_global: torch.Tensor,
        dropped: torch.Tensor,
        call: _Call,
    ) -> torch.Tensor:
        near = _near(_flatten(q), _flatten(k), _flatten(v), call)
        far = _operator()(q, k_global, v_global, **call.globals(dropped))
        near_max, near_sum = (_unflatten(x, q) for x in (near.softmax_max, near.softmax_sum))
        far_max, far_sum = far[1:3]
        top = torch.maximum(near_max, far_max)
        near_weight = near_sum * (near_max - top).exp()
        # A row that sees no global key has statistics of nothing.
        sees = ~dropped.all(-1).unsqueeze(-1)
        far_weight = torch.where(sees, far_sum * (far_max - top).exp(), 0.0)
        top = torch.where(sees, top, near_max)
        near_weight = torch.where(sees, near_weight, near_sum)
        total = near_weight + far_weight
        share = (far_weight / total)[..., :1]
        out = _unflatten(near.out, q) * (1 - share) + torch.where(sees, far[0], 0.0) * share
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, k_global, v_global, dropped, top, total, out)
        ctx.call, ctx.draws = call, (near.draws, far[4:7])
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, k_global, v_global, dropped, top, total, out = ctx.saved_tensors
        call, (near_draws, far_draws) = ctx.call, ctx.draws
        flat = [_flatten(x) for x in (q, k, v, grad)]
        near = _near_gradient(flat, [_flatten(x) for x in (top, total, out)], call, near_draws)
        far = _gradient()(
            q, k_global, v_global, grad, **_for_gradient(call.globals(dropped), [top, total, out], far_draws)
        )
        dq, dk, dv = (_unflatten(x, q) for x in near)
        return dq + far[0], dk, dv, far[1], far[2], None, None


def _for_gradient(options: dict[str, Any], joint: list[torch.Tensor], draws: tuple[Any, ...]) -> dict[str, Any]:
    """The forward call's options under the names of the gradient operator."""
    renamed = {("scale_value" if name == "scale" else name): value for name, value in options.items()}
    seed, offset, numels = draws
    statistics = {"softmax_max": joint[0], "softmax_sum": joint[1], "attention_in": joint[2]}
    return renamed | statistics | {"seed": seed, "offset": offset, "numels": numels}


def _not_for_second_call(length: int, reach: int, mask: Mask) -> torch.Tensor:
    """True where a global key is one of the band's, or is none at all: B×1×L×G."""
    assert mask.global_BG is not None
    queries = torch.arange(length, device=mask.global_BG.device)[:, None]
    dropped = (queries - mask.global_BG[:, None, :]).abs() <= reach
    if mask.unused_BG is not None:
        dropped = dropped | mask.unused_BG[:, None, :]
    return dropped.unsqueeze(1)


def _operator() -> Any:
    return importlib.import_module("torch_npu").npu_fusion_attention


def _gradient() -> Any:
    return importlib.import_module("torch_npu").npu_fusion_attention_grad


def _rows(q_BHLD: torch.Tensor) -> tuple[int, ...]:
    rows, _, length, _ = q_BHLD.shape
    return tuple(range(length, rows * length + 1, length))


def _flatten(x_BHLD: torch.Tensor) -> torch.Tensor:
    return x_BHLD.transpose(1, 2).flatten(0, 1).contiguous()


def _unflatten(x_THD: torch.Tensor, like_BHLD: torch.Tensor) -> torch.Tensor:
    return x_THD.unflatten(0, (like_BHLD.shape[0], like_BHLD.shape[2])).transpose(1, 2)


@lru_cache(maxsize=8)
def _triangle(device: torch.device) -> torch.Tensor:
    return torch.ones(_COMPRESSED, _COMPRESSED, dtype=torch.bool, device=device).triu(1)


@lru_cache(maxsize=8)
def _far(length: int, reach: int, device: torch.device) -> torch.Tensor:
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() > reach


@lru_cache(maxsize=8)
def _itself(length: int, device: torch.device) -> torch.Tensor:
    return torch.eye(length, dtype=torch.bool, device=device)
