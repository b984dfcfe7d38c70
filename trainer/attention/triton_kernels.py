"""Owns the Triton kernels of attention in a sliding window: forward, the queries' gradient, the keys' gradients.

Compiled for sm_80 and sm_90 and run by Triton's interpreter; never run or timed on a GPU.
A program has a block of M queries, or of N keys, of one head, n of B·H, and walks the tiles on the other side that its
window reaches; G global keys are taken at a time. P: D filled to a power of two. Scores are logarithms to base 2.
"""
# Triton compiles these functions; what Python's types would say of them is not so.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from trainer.attention import triton_tiles as tiles

# Queries whose share of a global key's gradient one program sums up.
SPAN = tl.constexpr(512)

_G = tiles.GLOBAL_TILE
_LOG2E = tl.constexpr(1.4426950408889634)
# Below every score and above -inf: a query that has seen no key yet gives zeros, not NaN.
_NOTHING = tl.constexpr(-1e30)


class Tensors(NamedTuple):
    """In dense B×L×H×D memory; but norm and delta B×H×L, dk_global and dv_global one B×H×G×D a span of queries."""

    q: Any
    k: Any
    v: Any
    out: Any
    norm: Any
    grad: Any = None
    delta: Any = None
    dq: Any = None
    dk: Any = None
    dv: Any = None
    dk_global: Any = None
    dv_global: Any = None


class Sizes(NamedTuple):
    length: int
    heads: int
    reach: int
    num_global: int


class Drop(NamedTuple):
    """Of 65,536 levels those below the threshold are dropped; what is kept is multiplied by scale."""

    threshold: int
    scale: float


class Tile(NamedTuple):
    """What a kernel is compiled for. `precision` is that of single-precision products."""

    M: int
    N: int
    D: int
    P: int
    precision: str


# The seed is another one each time: unless told, the compiler would make a variant of its own for every sixteenth.
@triton.jit(do_not_specialize=["seed"])
def forward(x, mask, sizes, drop, seed, T: tl.constexpr):
    """Writes out, and norm: the logarithm of what each query's exponentials are divided by."""
    M: tl.constexpr = T.M
    P: tl.constexpr = T.P
    # Neighbouring blocks of a head run at the same time and share most of their keys, which then come from L2.
    start, n = tl.program_id(0) * M, tl.program_id(1)
    i_M = start + tl.arange(0, M)
    q_MP = tiles.load(x.q, i_M, i_M < sizes.length, n, sizes, T)
    numbers_M = tiles.query_numbers(mask, i_M, n, sizes)
    low, high = tiles.keys_in_reach(mask, start, numbers_M, n, sizes, T)
    top_M = tl.full([M], _NOTHING, tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    out_MP = tl.zeros([M, P], tl.float32)
    for at in tl.range(low, high, T.N):
        j_N = at + tl.arange(0, T.N)
        k_NP = tiles.load(x.k, j_N, j_N < sizes.length, n, sizes, T)
        v_NP = tiles.load(x.v, j_N, j_N < sizes.length, n, sizes, T)
        numbers_N = tiles.key_numbers(mask, j_N, n, sizes)
        seen_MN = tiles.sees(i_M[:, None], j_N[None, :], numbers_M[:, None], numbers_N[None, :], sizes)
        kept_MN = tiles.kept(drop, seed, n, start, at, T.M, T.N)
        top_M, sum_M, out_MP = _take_in_keys(top_M, sum_M, out_MP, q_MP, k_NP, v_NP, seen_MN, kept_MN, T)
    if mask.global_BG is not None:
        for slot in tl.range(0, sizes.num_global, _G):
            at_G, used_G = tiles.global_keys(mask, slot, n, sizes)
            k_GP = tiles.load(x.k, at_G, used_G, n, sizes, T)
            v_GP = tiles.load(x.v, at_G, used_G, n, sizes, T)
            kept_MG = tiles.kept(drop, seed, n, start, tiles.column(slot, sizes), T.M, _G)
            top_M, sum_M, out_MP = _take_in_keys(top_M, sum_M, out_MP, q_MP, k_GP, v_GP, used_G[None, :], kept_MG, T)
    sum_M = tl.where(sum_M == 0, 1.0, sum_M)
    out_MP = out_MP / sum_M[:, None]
    if drop is not None:
        out_MP *= drop.scale
    tl.store(tiles.numbers_of(x.norm, n, sizes) + i_M, top_M + tl.log2(sum_M), mask=i_M < sizes.length)
    tiles.store(x.out, out_MP, i_M, n, sizes, T)


@triton.jit(do_not_specialize=["seed"])
def query_gradient(x, mask, sizes, drop, seed, T: tl.constexpr):
    """Writes dq, and delta: each query's product of output and gradient, which the keys' gradients need too."""
    M: tl.constexpr = T.M
    P: tl.constexpr = T.P
    start, n = tl.program_id(0) * M, tl.program_id(1)
    i_M = start + tl.arange(0, M)
    within_M = i_M < sizes.length
    q_MP = tiles.load(x.q, i_M, within_M, n, sizes, T)
    grad_MP = tiles.load(x.grad, i_M, within_M, n, sizes, T)
    out_MP = tiles.load(x.out, i_M, within_M, n, sizes, T)
    norm_M = tl.load(tiles.numbers_of(x.norm, n, sizes) + i_M, mask=within_M, other=0.0)
    delta_M = tl.sum(out_MP.to(tl.float32) * grad_MP.to(tl.float32), 1)
    tl.store(tiles.numbers_of(x.delta, n, sizes) + i_M, delta_M, mask=within_M)
    numbers_M = tiles.query_numbers(mask, i_M, n, sizes)
    low, high = tiles.keys_in_reach(mask, start, numbers_M, n, sizes, T)
    norm, delta = norm_M[:, None], delta_M[:, None]
    dq_MP = tl.zeros([M, P], tl.float32)
    for at in tl.range(low, high, T.N):
        j_N = at + tl.arange(0, T.N)
        k_NP = tiles.load(x.k, j_N, j_N < sizes.length, n, sizes, T)
        v_NP = tiles.load(x.v, j_N, j_N < sizes.length, n, sizes, T)
        numbers_N = tiles.key_numbers(mask, j_N, n, sizes)
        seen_MN = tiles.sees(i_M[:, None], j_N[None, :], numbers_M[:, None], numbers_N[None, :], sizes)
        kept_MN = tiles.kept(drop, seed, n, start, at, T.M, T.N)
        _, slopes_MN = _slopes(q_MP, k_NP, grad_MP, v_NP, norm, delta, seen_MN, kept_MN, drop, T)
        dq_MP = tl.dot(slopes_MN.to(k_NP.dtype), k_NP, dq_MP, input_precision=T.precision)
    if mask.global_BG is not None:
        for slot in tl.range(0, sizes.num_global, _G):
            at_G, used_G = tiles.global_keys(mask, slot, n, sizes)
            k_GP = tiles.load(x.k, at_G, used_G, n, sizes, T)
            v_GP = tiles.load(x.v, at_G, used_G, n, sizes, T)
            kept_MG = tiles.kept(drop, seed, n, start, tiles.column(slot, sizes), T.M, _G)
            _, slopes_MG = _slopes(q_MP, k_GP, grad_MP, v_GP, norm, delta, used_G[None, :], kept_MG, drop, T)
            dq_MP = tl.dot(slopes_MG.to(k_GP.dtype), k_GP, dq_MP, input_precision=T.precision)
    tiles.store(x.dq, dq_MP, i_M, n, sizes, T)


@triton.jit(do_not_specialize=["seed"])
def key_gradients(x, mask, sizes, drop, seed, T: tl.constexpr):
    """Writes dk and dv as far as they come through the window: zeros for global keys."""
    N: tl.constexpr = T.N
    P: tl.constexpr = T.P
    start, n = tl.program_id(0) * N, tl.program_id(1)
    j_N = start + tl.arange(0, N)
    k_NP = tiles.load(x.k, j_N, j_N < sizes.length, n, sizes, T)
    v_NP = tiles.load(x.v, j_N, j_N < sizes.length, n, sizes, T)
    numbers_N = tiles.key_numbers(mask, j_N, n, sizes)
    low, high = tiles.queries_in_reach(mask, start, numbers_N, n, sizes, T)
    dk_NP = tl.zeros([N, P], tl.float32)
    dv_NP = tl.zeros([N, P], tl.float32)
    for at in tl.range(low, high, T.M):
        i_M = at + tl.arange(0, T.M)
        numbers_M = tiles.query_numbers(mask, i_M, n, sizes)
        seen_NM = tiles.sees(i_M[None, :], j_N[:, None], numbers_M[None, :], numbers_N[:, None], sizes)
        kept_NM = tl.trans(tiles.kept(drop, seed, n, at, start, T.M, T.N))
        dk_NP, dv_NP = _take_in_queries(dk_NP, dv_NP, k_NP, v_NP, x, i_M, seen_NM, kept_NM, n, sizes, drop, T)
    if drop is not None:
        dv_NP *= drop.scale
    tiles.store(x.dk, dk_NP, j_N, n, sizes, T)
    tiles.store(x.dv, dv_NP, j_N, n, sizes, T)


@triton.jit(do_not_specialize=["seed"])
def global_gradients(x, mask, sizes, drop, seed, T: tl.constexpr):
    """Writes dk_global and dv_global. Every query sees a global key: in one program this would outlast all else."""
    P: tl.constexpr = T.P
    span, slot, n = tl.program_id(0), tl.program_id(1) * _G, tl.program_id(2)
    at_G, used_G = tiles.global_keys(mask, slot, n, sizes)
    k_GP = tiles.load(x.k, at_G, used_G, n, sizes, T)
    v_GP = tiles.load(x.v, at_G, used_G, n, sizes, T)
    dk_GP = tl.zeros([_G, P], tl.float32)
    dv_GP = tl.zeros([_G, P], tl.float32)
    for at in tl.range(span * SPAN, tl.minimum(span * SPAN + SPAN, sizes.length), T.M):
        i_M = at + tl.arange(0, T.M)
        seen_GM = used_G[:, None] & (i_M < sizes.length)[None, :]
        kept_GM = tl.trans(tiles.kept(drop, seed, n, at, tiles.column(slot, sizes), T.M, _G))
        dk_GP, dv_GP = _take_in_queries(dk_GP, dv_GP, k_GP, v_GP, x, i_M, seen_GM, kept_GM, n, sizes, drop, T)
    if drop is not None:
        dv_GP *= drop.scale
    places_GP, present_GP = tiles.global_places(slot, span * tl.num_programs(2) + n, sizes, T)
    tl.store(x.dk_global + places_GP, dk_GP, mask=present_GP)
    tl.store(x.dv_global + places_GP, dv_GP, mask=present_GP)


@triton.jit
def _take_in_keys(top_M, sum_M, out_MP, q_MP, k_NP, v_NP, seen_MN, kept_MN, T: tl.constexpr):
    """One more tile of keys into the running softmax. Its sum counts what dropout drops."""
    scores_MN = tl.dot(q_MP, tl.trans(k_NP), input_precision=T.precision) * _LOG2E
    scores_MN = tl.where(seen_MN, scores_MN, float("-inf"))
    new_top_M = tl.maximum(top_M, tl.max(scores_MN, 1))
    shares_MN = tl.exp2(scores_MN - new_top_M[:, None])
    shrink_M = tl.exp2(top_M - new_top_M)
    sum_M = sum_M * shrink_M + tl.sum(shares_MN, 1)
    shares_MN = tl.where(kept_MN, shares_MN, 0.0).to(v_NP.dtype)
    out_MP = tl.dot(shares_MN, v_NP, out_MP * shrink_M[:, None], input_precision=T.precision)
    return new_top_M, sum_M, out_MP


@triton.jit
def _take_in_queries(dk_NP, dv_NP, k_NP, v_NP, x, i_M, seen_NM, kept_NM, n, sizes, drop, T: tl.constexpr):
    """What one more tile of queries adds to the gradients of keys."""
    within_M = i_M < sizes.length
    q_MP = tiles.load(x.q, i_M, within_M, n, sizes, T)
    grad_MP = tiles.load(x.grad, i_M, within_M, n, sizes, T)
    norm_M = tl.load(tiles.numbers_of(x.norm, n, sizes) + i_M, mask=within_M, other=0.0)
    delta_M = tl.load(tiles.numbers_of(x.delta, n, sizes) + i_M, mask=within_M, other=0.0)
    norm, delta = norm_M[None, :], delta_M[None, :]
    shares_NM, slopes_NM = _slopes(k_NP, q_MP, v_NP, grad_MP, norm, delta, seen_NM, kept_NM, drop, T)
    dv_NP = tl.dot(shares_NM.to(grad_MP.dtype), grad_MP, dv_NP, input_precision=T.precision)
    dk_NP = tl.dot(slopes_NM.to(q_MP.dtype), q_MP, dk_NP, input_precision=T.precision)
    return dk_NP, dv_NP


@triton.jit
def _slopes(left, right, left_value, right_value, norm, delta, seen, kept, drop, T: tl.constexpr):
    """The probabilities, made again, without those dropped; and the gradient of the scores.

    Queries are on one side, with their output's gradient for a value, keys on the other.
    """
    scores = tl.dot(left, tl.trans(right), input_precision=T.precision) * _LOG2E
    shares = tl.exp2(tl.where(seen, scores, float("-inf")) - norm)
    gains = tl.dot(left_value, tl.trans(right_value), input_precision=T.precision)
    if drop is not None:
        gains = tl.where(kept, gains * drop.scale, 0.0)
    return tl.where(kept, shares, 0.0), shares * (gains - delta)
