"""Owns what the Triton kernels know of a tile: where its tokens lie, who sees whom, what dropout keeps.

A tile is M queries by N keys of one head, n of B·H, in tensors that lie as B×L×H×D.
"""
# Triton compiles these functions; what Python's types would say of them is not so.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false

import triton
import triton.language as tl

# How many global keys a tile has: no matrix product takes fewer.
GLOBAL_TILE = tl.constexpr(16)

# In place of a segment's number: what no query sees, and what is no query.
_NO_KEY = tl.constexpr(-1)
_NO_QUERY = tl.constexpr(-2)
_HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def kept(drop, seed, n, row, start, M: tl.constexpr, N: tl.constexpr):
    """Which shares of the tile that begins at a row and a column dropout keeps: M×N.

    Each is drawn by where it lies, so tiles of any size agree; they begin at multiples of 16. One draw of Philox
    is 128 bits and serves eight shares: these lie 8 rows, 8 columns or 1 column apart, as a tensor core's accumulator
    gives them to one thread. For 64×64 shares that is 392 instructions a thread on sm_80; a draw each would be 1,488.
    """
    if drop is None:
        kept_MN = tl.full([M, N], True, tl.int1)
    else:
        rows = (row // 16 + tl.arange(0, M // 16)[:, None]) * 8 + tl.arange(0, 8)[None, :]
        columns = (start // 16 + tl.arange(0, N // 16)[:, None]) * 4 + tl.arange(0, 4)[None, :]
        zeros = tl.zeros([M // 16, 8, N // 16, 4], tl.int32)
        a, b, c, d = tl.philox(
            seed, rows[:, :, None, None] + zeros, columns[None, None, :, :] + zeros, n + zeros, zeros
        )
        words = tl.join(tl.join(a, b), tl.join(c, d))
        levels = tl.join(words & 0xFFFF, words >> 16)
        levels_MN = tl.reshape(tl.permute(levels, (0, 4, 1, 2, 5, 3, 6)), [M, N])
        kept_MN = levels_MN >= drop.threshold
    return kept_MN


@triton.jit
def column(slot, sizes):
    """Where dropout draws for a global key: after all keys of the window."""
    return tl.cdiv(sizes.length, 16) * 16 + slot


@triton.jit
def sees(i, j, numbers_i, numbers_j, sizes):
    """Which keys j are in a query i's window and of its text."""
    away = i - j
    return (away <= sizes.reach) & (away >= -sizes.reach) & (numbers_i == numbers_j)


@triton.jit
def query_numbers(mask, i_M, n, sizes):
    """Of which text queries are: they see keys of the same number. Nobody wants to know what hidden ones see."""
    return _numbers(mask, i_M, n, sizes, _NO_QUERY)


@triton.jit
def key_numbers(mask, j_N, n, sizes):
    return _numbers(mask, j_N, n, sizes, _NO_KEY)


@triton.jit
def global_keys(mask, slot, n, sizes):
    """Where a tile of global keys lies, and which of its places hold one."""
    slot_G = slot + tl.arange(0, GLOBAL_TILE)
    used_G = slot_G < sizes.num_global
    at_G = (n // sizes.heads) * sizes.num_global + slot_G
    if mask.unused_BG is not None:
        used_G = used_G & (tl.load(mask.unused_BG + at_G, mask=used_G, other=1) == 0)
    return tl.load(mask.global_BG + at_G, mask=used_G, other=0).to(tl.int32), used_G


@triton.jit
def keys_in_reach(mask, start, numbers_M, n, sizes, T: tl.constexpr):
    """Where the tiles of keys begin and end that a block of queries sees anything of."""
    low = tl.maximum(start - sizes.reach, 0) // T.N * T.N
    high = tl.minimum(start + T.M + sizes.reach, sizes.length)
    high = low + tl.cdiv(high - low, T.N) * T.N
    if mask.segments_BL is not None or mask.hidden_BL is not None:
        # Texts and padding lie in runs, so what nobody sees is at the ends: looking there keeps branches out of the loop.
        least = tl.min(tl.where(numbers_M < 0, _HIGHEST, numbers_M))
        most = tl.max(numbers_M)
        while (low < high) & ~_any_between(key_numbers(mask, low + tl.arange(0, T.N), n, sizes), least, most):
            low += T.N
        while (low < high) & ~_any_between(key_numbers(mask, high - T.N + tl.arange(0, T.N), n, sizes), least, most):
            high -= T.N
    return low, high


@triton.jit
def queries_in_reach(mask, start, numbers_N, n, sizes, T: tl.constexpr):
    """Where the tiles of queries begin and end that see anything of a block of keys."""
    low = tl.maximum(start - sizes.reach, 0) // T.M * T.M
    high = tl.minimum(start + T.N + sizes.reach, sizes.length)
    high = low + tl.cdiv(high - low, T.M) * T.M
    if mask.segments_BL is not None or mask.hidden_BL is not None:
        least = tl.min(tl.where(numbers_N < 0, _HIGHEST, numbers_N))
        most = tl.max(numbers_N)
        while (low < high) & ~_any_between(query_numbers(mask, low + tl.arange(0, T.M), n, sizes), least, most):
            low += T.M
        while (low < high) & ~_any_between(query_numbers(mask, high - T.M + tl.arange(0, T.M), n, sizes), least, most):
            high -= T.M
    return low, high


@triton.jit
def numbers_of(pointer, n, sizes):
    """Where the numbers of a head's queries begin."""
    return pointer + n.to(tl.int64) * sizes.length


@triton.jit
def load(pointer, at, present, n, sizes, T: tl.constexpr):
    """Rows of one head at the given tokens, zeros where none is present."""
    places, inside = _places(at, present, n, sizes, T)
    return tl.load(pointer + places, mask=inside, other=0.0)


@triton.jit
def store(pointer, rows, at, n, sizes, T: tl.constexpr):
    places, inside = _places(at, at < sizes.length, n, sizes, T)
    tl.store(pointer + places, rows.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _places(at, present, n, sizes, T: tl.constexpr):
    d_P = tl.arange(0, T.P)
    first = (n // sizes.heads).to(tl.int64) * sizes.length * sizes.heads + n % sizes.heads
    places = first * T.D + (at * sizes.heads * T.D)[:, None] + d_P[None, :]
    return places, present[:, None] & (d_P < T.D)[None, :]


@triton.jit
def global_places(slot, part, sizes, T: tl.constexpr):
    """Where rows of a tile of global keys lie in parts of G×D, and which are there."""
    slot_G = slot + tl.arange(0, GLOBAL_TILE)
    d_P = tl.arange(0, T.P)
    first = part.to(tl.int64) * sizes.num_global * T.D
    return first + slot_G[:, None] * T.D + d_P[None, :], (slot_G < sizes.num_global)[:, None] & (d_P < T.D)[None, :]


@triton.jit
def _numbers(mask, at, n, sizes, NONE: tl.constexpr):
    within = at < sizes.length
    numbers = tl.where(within, 0, NONE)
    first = (n // sizes.heads) * sizes.length
    if mask.segments_BL is not None:
        numbers = tl.load(mask.segments_BL + first + at, mask=within, other=NONE).to(tl.int32)
    if mask.hidden_BL is not None:
        hidden = tl.load(mask.hidden_BL + first + at, mask=within, other=1)
        numbers = tl.where(hidden != 0, NONE, numbers)
    return numbers


@triton.jit
def _any_between(numbers, least, most):
    return tl.max(((numbers >= least) & (numbers <= most)).to(tl.int32)) > 0
