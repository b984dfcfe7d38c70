"""Which devices of one host a job gets: neighbours, and so that what stays free stays whole. Pure; bit i of a mask is device i."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import Final, NamedTuple

OCTET: Final = 8
"""Hosts with more devices than this are looked at eight by eight."""


class Fit(NamedTuple):
    """The devices to take, and what that costs: how scattered they are, the free blocks of 8, 4 and 2 that it breaks, what is left."""

    cost: tuple[int, ...]
    devices: int


def mask_of(indices: Iterable[int]) -> int:
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def indices_of(mask: int) -> tuple[int, ...]:
    return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)


@lru_cache(maxsize=1 << 16)
def fit(free: int, count: int, group: int = 0) -> Fit | None:
    """The best `count` of the free devices; None where they do not fit.

    `group` is the size of the linked groups of an Ascend host: a job that fits into one must not straddle two, as its processes could not
    talk to each other there.
    """
    if free.bit_count() < count:
        return None
    is_bound = 0 < count <= group
    candidates = [
        _mask(chosen)
        for block in _blocks(free, group if is_bound else OCTET)
        if block.bit_count() >= count
        for chosen in combinations(_bits(block), count)
    ]
    if not candidates:
        if is_bound:
            return None
        candidates = [_spread(free, count)]
    return min(Fit(_cost(free, devices, count), devices) for devices in candidates)


def soonest(ready_at: Iterable[tuple[float, int]], count: int, group: int = 0) -> tuple[list[float], int] | None:
    """Of devices told as (ready at, index), the `count` of one group, or of the host, that are ready first: their times, their mask."""
    parts: dict[int, list[tuple[float, int]]] = {}
    for at, index in ready_at:
        parts.setdefault(index // group if 0 < count <= group else 0, []).append((at, index))
    found = [sorted(part)[:count] for part in parts.values() if len(part) >= count]
    if not found:
        return None
    best = min(found, key=lambda part: ([at for at, _ in reversed(part)], part))
    return [at for at, _ in best], mask_of(index for _, index in best)


def _blocks(free: int, size: int) -> Iterator[int]:
    for start in range(0, free.bit_length(), size):
        yield free & (((1 << size) - 1) << start)


def _bits(mask: int) -> list[int]:
    bits: list[int] = []
    while mask:
        low = mask & -mask
        bits.append(low)
        mask ^= low
    return bits


def _mask(bits: Iterable[int]) -> int:
    return sum(bits)


def _spread(free: int, count: int) -> int:
    """Over several octets: the fullest ones first."""
    taken = 0
    for block in sorted(_blocks(free, OCTET), key=lambda block: (-block.bit_count(), block)):
        taken |= _mask(_bits(block)[: count - taken.bit_count()])
    return taken


def _cost(free: int, devices: int, count: int) -> tuple[int, ...]:
    rest = free & ~devices
    before, after = _whole_blocks(free), _whole_blocks(rest)
    broken = tuple(was - is_left for was, is_left in zip(before, after, strict=True))
    return (_enclosing(devices) - _enclosing((1 << count) - 1), *broken, rest.bit_count())


@lru_cache(maxsize=1 << 16)
def _whole_blocks(mask: int) -> tuple[int, int, int]:
    """How many aligned blocks of 8, 4 and 2 are free as a whole."""
    counts = [
        sum(mask >> start & ((1 << size) - 1) == (1 << size) - 1 for start in range(0, mask.bit_length(), size))
        for size in (8, 4, 2)
    ]
    return counts[0], counts[1], counts[2]


def _enclosing(devices: int) -> int:
    """The size of the smallest aligned block around them: 2 for devices 2 and 3, 4 for 1 and 2."""
    low, high = (devices & -devices).bit_length() - 1, devices.bit_length() - 1
    size = 1
    while low // size != high // size:
        size *= 2
    return size
