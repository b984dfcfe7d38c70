"""Owns what a process does to its memory before it forks children that shall share it: nothing of it is moved, swept or filled in later."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_LARGEST_HOLE_BYTES: Final = 64 * 1024
_STEP_BYTES: Final = 16
_HEADER_BYTES: Final = 8
_libc = ctypes.CDLL(None)


class _MallInfo2(ctypes.Structure):
    """glibc's, all in bytes but for the counts. `fordblks` is what is free, `keepcost` the part of it at the top of the heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


def settle() -> None:
    """The last thing before the first fork."""
    gc.collect()
    gc.freeze()
    _plug_holes()


def _plug_holes() -> None:
    """Take what is free between the blocks of the heap, for good: a child's own blocks then lie together at its top.

    Scattered over a thousand pages that it shares with its parent, each of them would have to be copied. Only glibc since 2.33 can tell.
    """
    try:
        _libc.mallinfo2.restype = _MallInfo2
        _libc.malloc.argtypes, _libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    except AttributeError:
        return
    size = _LARGEST_HOLE_BYTES
    while size >= 2 * _HEADER_BYTES:
        before = _libc.mallinfo2()
        if before.fordblks - before.keepcost + before.fsmblks >= size:
            _libc.malloc(size - _HEADER_BYTES)
            after = _libc.mallinfo2()
            if (after.keepcost, after.arena) == (before.keepcost, before.arena):
                continue
        # There is no hole of this size, or none any more: it came from the top.
        size = size // 2 if size > 256 else size - _STEP_BYTES
