"""What test_cuda.py asks of the Triton kernels, each in a process of its own: Triton is told once whether it interprets."""

import copy
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tests.trainer.attention.test_module import modules, run, signs, worst
from trainer.attention import banded
from trainer.attention.banded import Dropout
from trainer.attention.blocks import Mask
from trainer.attention.module import WindowedSelfAttention


@dataclass(frozen=True)
class Case:
    """One attention; `masking` is any of padding, globals, segments."""

    length: int
    reach: int
    masking: frozenset[str] = frozenset()
    width: int = 16
    rows: int = 2
    heads: int = 1
    dtype: torch.dtype = torch.float32
    rate: float = 0.0
    seed: int = 5

    @property
    def mask(self) -> Mask:
        hidden = torch.zeros(self.rows, self.length, dtype=torch.bool)
        if "padding" in self.masking:
            hidden[0, self.length * 2 // 3 :] = True
        at = unused = segments = None
        if "globals" in self.masking:
            at = torch.tensor([[1, self.length // 2], [self.length // 3, 0]])[: self.rows]
            unused = torch.tensor([[False, False], [False, True]])[: self.rows]
            for row, position in (~unused).nonzero().tolist():
                hidden[row, at[row, position]] = True
        if "segments" in self.masking:
            segments = (torch.arange(self.length) // (self.length // 3) + 1).repeat(self.rows, 1)
            segments[hidden] = 0
        return Mask(hidden if self.masking & {"padding", "globals"} else None, at, unused, segments)

    def visible(self) -> torch.Tensor:
        """Which keys a query sees: B×1×L×L."""
        at, mask = torch.arange(self.length), self.mask
        seen = ((at[:, None] - at).abs() <= self.reach).expand(self.rows, -1, -1)
        if mask.segments_BL is not None:
            seen = seen & (mask.segments_BL[:, :, None] == mask.segments_BL[:, None])
        if mask.hidden_BL is not None:
            seen = seen & ~mask.hidden_BL[:, None]
        if mask.global_BG is not None and mask.unused_BG is not None:
            used = torch.zeros(self.rows, self.length, dtype=torch.bool)
            for row, slot in (~mask.unused_BG).nonzero().tolist():
                used[row, mask.global_BG[row, slot]] = True
            seen = seen | used[:, None]
        return seen[:, None]

    @property
    def dropout(self) -> Dropout | None:
        return Dropout(self.rate, self.seed) if self.rate else None

    def tensors(self) -> list[torch.Tensor]:
        """Queries, keys and values as projections leave them, and a weight of each output."""
        generator = torch.Generator().manual_seed(3)
        shape = self.rows, self.length, self.heads, self.width
        return [torch.randn(shape, generator=generator).transpose(1, 2).to(self.dtype) for _ in range(4)]


def differentiate(attend: Callable[..., torch.Tensor], case: Case) -> dict[str, torch.Tensor]:
    """Output and gradients, by name."""
    *leaves, weight = case.tensors()
    q, k, v = (x.requires_grad_() for x in leaves)
    out = attend(q / 2, k, v, case.reach, case.mask, case.dropout)
    if case.mask.hidden_BL is not None:
        # Implementations differ there, and nobody reads it.
        out = out.masked_fill(case.mask.hidden_BL[:, None, :, None], 0.0)
    (out * weight).sum().backward()
    found = {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    return {name: x.float() for name, x in found.items() if x is not None}


def kernels(device: str, case: Case) -> dict[str, torch.Tensor]:
    return differentiate(_attend_on(device), case)


def halves(device: str) -> dict[torch.dtype, float]:
    """Which half precisions work there, and how far off they may be."""
    # The interpreter multiplies the bits of bfloat16 as if they were integers.
    return {torch.float16: 5e-3} | ({torch.bfloat16: 0.03} if device == "cuda" else {})


def expected(case: Case) -> dict[str, torch.Tensor]:
    return differentiate(banded.attend, case)


def shares(device: str, case: Case) -> torch.Tensor:
    """The probabilities after dropout, B×H×L×L, where all keys that a query sees have the same."""
    q = torch.zeros(case.rows, case.heads, case.length, case.width, dtype=case.dtype)
    attend, columns = _attend_on(device), torch.eye(case.length, dtype=case.dtype).split(case.width, 1)
    values = [F.pad(v, (0, case.width - v.shape[1])).expand_as(q) for v in columns]
    found = [attend(q, q, v, case.reach, case.mask, case.dropout) for v in values]
    return torch.cat(found, -1)[..., : case.length].float()


def distance_from_stock(device: str, length: int, window: int, padding: bool, num_global: int) -> float:
    stock, ours = modules(16, 1, window)
    ours = WindowedSelfAttention.adopt(copy.deepcopy(stock), _attend_on(device))
    hidden = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(length))
    mask = signs(2, length, padding=padding, num_global=num_global)
    return worst(run(ours, hidden, mask), run(stock, hidden, mask, multiple=window), floor_share=1e-2)


def compiled(architecture: int, case: Case, backward: bool) -> dict[str, dict[str, int]]:
    """Compiles what a training step launches, with its own arguments; bytes and registers of each kernel."""
    with _launches(architecture) as found:
        q, k, v, _ = (x.requires_grad_() for x in case.tensors())
        out = _attend_on("cpu")(q, k, v, case.reach, case.mask, case.dropout)
        if backward:
            out.sum().backward()
    return found


def _attend_on(device: str) -> Callable[..., torch.Tensor]:
    from trainer.attention import cuda

    def attend(q: Any, k: Any, v: Any, reach: int, mask: Mask, dropout: Dropout | None = None) -> torch.Tensor:
        moved = Mask(*(None if x is None else x.to(device) for x in mask[:4]))
        return cuda.attend(q.to(device), k.to(device), v.to(device), reach, moved, dropout).cpu()

    return attend


@contextmanager
def _launches(architecture: int) -> Generator[dict[str, dict[str, int]]]:
    """Turns every launch into a compilation for a GPU that is not there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    kernel_class: Any = jit.JITFunction

    class Absent:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self) -> int:
            return architecture

        def get_current_stream(self, _: int) -> int:
            return 0

    found: dict[str, dict[str, int]] = {}
    launch = kernel_class.run

    def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
        binary = launch(kernel, *args, warmup=True, **options)
        found[kernel.__name__] = {"shared": binary.metadata.shared} | _resources(binary.asm["cubin"])

    driver.set_active(Absent())
    kernel_class.run = compile_only
    try:
        yield found
    finally:
        kernel_class.run = launch


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack: what did not fit into them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name.lower(): int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", said)}
