"""Owns the sliding-window attention on CUDA: what is handed to the Triton kernels, and their gradient.

The kernels were compiled for sm_80 and sm_90 and run by Triton's interpreter; never run or timed on a GPU.
Shapes: B sequences, H heads, L tokens, D head size, G global keys.
"""

from typing import Any

import torch
import triton

from trainer.attention import banded, triton_kernels, triton_tiles
from trainer.attention.banded import Dropout
from trainer.attention.blocks import Mask
from trainer.attention.triton_kernels import Drop, Sizes, Tensors, Tile

_WIDEST_HEAD = 128


def attend(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    reach: int,
    mask: Mask,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """As `banded.attend`, with a dropout stream of its own.

    Double precision and heads of more than 128 are left to `banded.attend`.
    """
    if q_BHLD.dtype == torch.float64 or q_BHLD.shape[3] > _WIDEST_HEAD:
        return banded.attend(q_BHLD, k_BHLD, v_BHLD, reach, mask, dropout)
    return _Windowed.apply(q_BHLD, k_BHLD, v_BHLD, reach, mask, dropout)  # pyright: ignore[reportReturnType]


class _Windowed(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        q_BHLD: torch.Tensor,
        k_BHLD: torch.Tensor,
        v_BHLD: torch.Tensor,
        reach: int,
        mask: Mask,
        dropout: Dropout | None,
    ) -> torch.Tensor:
        q, k, v = (_by_token(x, q_BHLD.dtype) for x in (q_BHLD, k_BHLD, v_BHLD))
        mask = Mask(*(x if x is None else x.contiguous() for x in mask[:4]), ends=None)
        norm_BHL = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        x = Tensors(q, k, v, torch.empty_like(q), norm_BHL)
        _Launch(x, reach, mask, dropout).forward()
        ctx.save_for_backward(*x[:5], *mask[:4])
        ctx.rest = reach, dropout
        return x.out

    @staticmethod
    def backward(ctx: Any, grad_BHLD: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, norm_BHL, *mask = ctx.saved_tensors
        grad = _by_token(grad_BHLD, q.dtype)
        x = Tensors(q, k, v, out, norm_BHL, grad, torch.empty_like(norm_BHL), *(torch.empty_like(q) for _ in range(3)))
        reach, dropout = ctx.rest
        _Launch(x, reach, Mask(*mask), dropout).backward()
        return x.dq, x.dk, x.dv, None, None, None


class _Launch:
    """The arguments that the kernels of one layer share."""

    def __init__(self, x: Tensors, reach: int, mask: Mask, dropout: Dropout | None) -> None:
        rows, heads, length, width = x.q.shape
        self.x, self.mask, self.num_heads = x, mask, rows * heads
        num_global = 0 if mask.global_BG is None else mask.global_BG.shape[1]
        self.sizes = Sizes(length, heads, reach, num_global)
        self.drop, self.seed = None, 0
        if dropout is not None and dropout.threshold > 0:
            self.drop, self.seed = Drop(dropout.threshold, dropout.scale), dropout.seed
        self.tile, self.options = _tile(width, x.q.dtype)

    def forward(self) -> None:
        grid = triton.cdiv(self.sizes.length, self.tile.M), self.num_heads
        triton_kernels.forward[grid](*self._arguments(), **self.options)

    def backward(self) -> None:
        """The queries' gradient comes first: it leaves behind what the others need."""
        grid = triton.cdiv(self.sizes.length, self.tile.M), self.num_heads
        triton_kernels.query_gradient[grid](*self._arguments(), **self.options)
        grid = triton.cdiv(self.sizes.length, self.tile.M), self.num_heads
        triton_kernels.key_gradients[grid](*self._arguments(turned=True), **self.options)
        if self.mask.global_BG is not None:
            self._global_gradients(self.mask.global_BG)

    def _global_gradients(self, global_BG: torch.Tensor) -> None:
        rows, heads, length, width = self.x.q.shape
        spans, num_global = triton.cdiv(length, triton_kernels.SPAN.value), global_BG.shape[1]
        shares = torch.empty(2, spans, rows, heads, num_global, width, dtype=torch.float32, device=self.x.q.device)
        self.x = self.x._replace(dk_global=shares[0], dv_global=shares[1])
        grid = spans, triton.cdiv(num_global, triton_tiles.GLOBAL_TILE.value), self.num_heads
        triton_kernels.global_gradients[grid](*self._arguments(), **self.options)
        index = global_BG[:, None, :, None].expand(-1, heads, -1, width)
        for gradient, share in zip((self.x.dk, self.x.dv), shares.sum(1), strict=True):
            gradient.scatter_add_(2, index, share.to(gradient.dtype))

    def _arguments(self, *, turned: bool = False) -> tuple[Any, ...]:
        tile = self.tile._replace(M=self.tile.N, N=self.tile.M) if turned else self.tile
        return self.x, self.mask, self.sizes, self.drop, self.seed, tile


def _by_token(x_BHLD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers in dense B×L×H×D memory, which is how projections leave them: then nothing is copied."""
    return x_BHLD.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _tile(width: int, dtype: torch.dtype) -> tuple[Tile, dict[str, Any]]:
    """Tile and launch options for a head size: what compiles without spilling registers; not measured."""
    padded = max(16, triton.next_power_of_2(width))
    # Single precision as torch has it: TF32 only where the caller allowed it for torch's own products.
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    # A block of 64 keeps four warps' tensor cores in step; wider ones would see more outside of a window of 512. Of the
    # other side 32 at a time: with 64, the operands of three or four products no longer fit into registers.
    block, step = (32, 32) if dtype == torch.float32 or padded > 64 else (64, 32)
    tile = Tile(block, step, width, padded, precision)
    return tile, {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
