"""Owns which sequences share a row: several packed behind each other, so that little of it is padding. Pure.

Shapes: N sequences, R rows.
"""

from collections import defaultdict

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

# Sequences so many at a time are packed among themselves: more would leave no less padding, only take more memory.
_WINDOW = 1 << 20


def pack(lengths_N: IntArray, capacity: int) -> tuple[IntArray, IntArray]:
    """Rows of at most `capacity` tokens: row i holds the sequences members_N[starts_R1[i] : starts_R1[i + 1]].

    Longest first, each where it leaves the least room; sequences of one length are placed together.
    """
    members: list[IntArray] = []
    counts: list[IntArray] = []
    for start in range(0, len(lengths_N), _WINDOW):
        of_window, counts_R = _pack_window(lengths_N[start : start + _WINDOW], capacity)
        members.append(of_window + start)
        counts.append(counts_R)
    starts_R1 = np.concatenate([np.zeros(1, np.int64), *counts])
    return np.concatenate(members), np.cumsum(starts_R1, out=starts_R1)


def _pack_window(lengths_N: IntArray, capacity: int) -> tuple[IntArray, IntArray]:
    """The sequences row by row, and how many there are in each row."""
    order_N = np.argsort(-lengths_N, kind="stable")
    row_N = np.empty(len(lengths_N), np.int64)
    rooms = _Rooms(capacity)
    distinct, first_of, how_many = np.unique(-lengths_N[order_N], return_index=True, return_counts=True)
    for length, first, count in zip((-distinct).tolist(), first_of.tolist(), how_many.tolist(), strict=True):
        placed = 0
        while placed < count:
            rows = rooms.take(length, count - placed)
            row_N[first + placed : first + placed + len(rows)] = rows
            placed += len(rows)
    # Stable, so that within a row the longest comes first.
    return order_N[np.argsort(row_N, kind="stable")], np.bincount(row_N, minlength=rooms.num_rows)


class _Rooms:
    """The rows that have been begun, by how many tokens still fit into them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: defaultdict[int, list[IntArray]] = defaultdict(list)
        self._has_rows = np.zeros(capacity + 1, np.bool_)
        self.num_rows = 0

    def take(self, length: int, at_most: int) -> IntArray:
        """Takes room for one sequence each in some rows that it fills best, or else in new ones. Returns the rows."""
        fitting = np.flatnonzero(self._has_rows[length:])
        if len(fitting):
            room = length + int(fitting[0])
            rows = self._rows[room].pop()
            if len(rows) > at_most:
                self._rows[room].append(rows[at_most:])
                rows = rows[:at_most]
            self._has_rows[room] = bool(self._rows[room])
        else:
            room = self._capacity
            # As many sequences as fit come into one new row, so no more of them are begun than are wanted.
            rows = np.arange(self.num_rows, self.num_rows + -(-at_most // (room // length)))
            self.num_rows += len(rows)
        self._rows[room - length].append(rows)
        self._has_rows[room - length] = True
        return rows
