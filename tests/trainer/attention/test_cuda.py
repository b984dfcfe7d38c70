"""The Triton kernels: run by Triton's interpreter, on a GPU too where there is one, and compiled for GPUs that are not."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from tests.trainer import triton_process
from tests.trainer.attention.test_module import worst
from tests.trainer.triton_process import Case
from trainer.attention import banded, module

# The interpreter takes its time, and more of it on a busy machine.
pytestmark = pytest.mark.timeout(400)
PATIENCE_S = 300

Ask = Callable[..., Any]
DEVICES = ["interpreter", *(["cuda"] if torch.cuda.is_available() else [])]
# What every GPU from sm_80 on gives a block of threads; sm_86 and sm_89 give no more.
SHARED_BYTES = 99 << 10


@pytest.fixture(scope="module", params=DEVICES)
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Calls a function of triton_process.py where kernels run, its first argument saying on which tensors."""
    if request.param == "cuda":
        yield lambda function, *args: function("cuda", *args)
        return
    with process(tmp_path_factory, TRITON_INTERPRET="1") as pool:
        yield lambda function, *args: pool.submit(function, "cpu", *args).result(PATIENCE_S)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with process(tmp_path_factory, TRITON_INTERPRET="0") as pool:
        yield lambda *args: pool.submit(triton_process.compiled, *args).result(PATIENCE_S)


def process(directories: pytest.TempPathFactory, **environment: str) -> ProcessPoolExecutor:
    """One process that starts with these variables and a cache of its own."""
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(directories.mktemp("triton")))
        for name, value in environment.items():
            patch.setenv(name, value)
        pool.submit(os.getpid).result(PATIENCE_S)
    return pool


@pytest.mark.parametrize(
    ("length", "window", "padding", "num_global"), [(66, 32, False, 0), (71, 26, True, 0), (70, 40, True, 3)]
)
def test_outputs_and_gradients_are_stocks(ask: Ask, length: int, window: int, padding: bool, num_global: int) -> None:
    assert ask(triton_process.distance_from_stock, length, window, padding, num_global) <= 1e-5


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 3),
        Case(5, 1, width=3),
        Case(77, 13, frozenset({"segments"}), width=24),
        Case(129, 7, frozenset({"padding", "segments"}), rows=1),
        Case(70, 33, frozenset({"padding", "globals", "segments"}), heads=2),
        Case(530, 3, frozenset({"globals"}), rows=1),  # more queries than one program sums a global key's gradient of
    ],
)
def test_any_shape_and_mask_as_the_banded_one(ask: Ask, case: Case) -> None:
    # Of a single key the gradients are 0 but for rounding, hence the scale.
    assert worst(ask(triton_process.kernels, case), triton_process.expected(case), floor_share=0.1) <= 1e-5


def test_half_precision_accumulates_in_single(ask: Ask) -> None:
    case = Case(150, 40, frozenset({"padding", "globals"}), rows=1, width=64)
    for dtype, tolerance in ask(triton_process.halves).items():
        half = ask(triton_process.kernels, replace(case, dtype=dtype))
        assert worst(half, triton_process.expected(case)) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dropout_is_one_function_forward_and_backward(ask: Ask, dtype: torch.dtype) -> None:
    """What is kept is read off a forward, and handed to plain attention whose gradients torch derives.

    In half precision, forward and backward have tiles of other sizes: they have to agree on what each drops.
    """
    case = Case(90, 20, frozenset({"padding", "globals"}), width=32, rate=0.3, dtype=dtype)
    kept = ask(triton_process.shares, case) > 0
    ours = ask(triton_process.kernels, case)
    theirs = triton_process.differentiate(
        lambda q, k, v, *_: plain(q, k, v, case, kept), replace(case, dtype=torch.float32)
    )
    assert worst(ours, theirs) <= (1e-5 if dtype == torch.float32 else 5e-3)


def test_dropout_drops_its_share_by_its_seed(ask: Ask) -> None:
    case = Case(64, 30, width=64, heads=2, rate=0.1)
    kept = ask(triton_process.shares, case)
    seen = case.visible().expand_as(kept)
    share = float((kept[seen] == 0).float().mean())
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / int(seen.sum())))
    count = seen.sum(-1, keepdim=True).expand_as(kept)
    survivors = kept > 0
    assert torch.allclose(kept[survivors] * count[survivors], torch.tensor(banded.Dropout(0.1, 0).scale), rtol=1e-5)
    flat = kept.flatten(0, 1)
    assert len({tuple(x.flatten().tolist()) for x in flat}) == len(flat), "every head of every row draws for itself"
    assert torch.equal(kept, ask(triton_process.shares, case))
    assert not torch.equal(kept, ask(triton_process.shares, replace(case, seed=6)))


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case, kept: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.mT).masked_fill(~case.visible(), float("-inf"))
    return (scores.softmax(-1) * kept * banded.Dropout(case.rate, 0).scale) @ v


@pytest.mark.parametrize(
    ("architecture", "masking", "rate", "backward"),
    [
        (80, {"padding"}, 0.0, False),
        (80, {"padding"}, 0.1, True),
        (80, {"padding", "globals", "segments"}, 0.1, True),
        (90, {"padding"}, 0.0, True),
        (90, {"padding", "segments"}, 0.1, True),
        (90, {"padding", "globals"}, 0.1, True),
    ],
)
def test_what_is_launched_compiles(
    compiler: Ask, architecture: int, masking: set[str], rate: float, backward: bool
) -> None:
    case = Case(512, 256, frozenset(masking), width=64, heads=12, rate=rate, dtype=torch.bfloat16)
    found = compiler(architecture, case, backward)
    names = ["forward", "query_gradient", "key_gradients"][: 3 if backward else 1]
    assert list(found) == names + ["global_gradients"] * ("globals" in masking)
    for name, used in found.items():
        assert used["shared"] <= SHARED_BYTES, (name, used)
        assert used["stack"] <= 64, f"{name} spills its registers: {used}"


def test_what_a_gpu_runs_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(module.candidates("cpu")) == ["banded"]
    monkeypatch.setattr(module, "_triton_runs", lambda: False)
    assert list(module.candidates("cuda")) == ["banded"]
    monkeypatch.setattr(module, "_triton_runs", lambda: True)
    assert list(module.candidates("cuda")) == ["cuda", "banded"]


def test_projections_go_in_and_out_as_they_lie() -> None:
    from trainer.attention import cuda

    projected = torch.randn(2, 10, 3, 8).transpose(1, 2)
    assert cuda._by_token(projected, torch.float32).data_ptr() == projected.data_ptr()
    other = torch.randn(2, 3, 10, 8)
    assert torch.equal(cuda._by_token(other, torch.float32), other)
