"""Owns what the files of an attempt hold beyond what is committed: as much of it as fits one transaction, and what the log's cap drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from worker.ingest import tail
from worker.ingest.tail import Report

BATCH_BYTES: Final = 1 << 20
METRICS_BYTES: Final = 1 << 18
KEPT_TAIL_BYTES: Final = 256 * 1024
"""Of each log past the cap, this much of its end is kept: it says why the rank died."""


@dataclass
class Offsets:
    """How far the files have been committed. `kept_bytes` counts the logs' bytes that were not dropped."""

    metrics: int
    logs: dict[int, int]
    kept_bytes: int
    dropped: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True)
class Piece:
    """Bytes of one rank's log at an offset; `data` is None for a range that is dropped."""

    rank: int
    offset: int
    num_bytes: int
    data: bytes | None


@dataclass(frozen=True)
class Note:
    """An event that the supervisor itself has to tell."""

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class News:
    """What the files hold beyond the offsets; `more` says that it was not all. `notes` come from no file."""

    reports: Sequence[Report]
    num_bad: int
    metrics_end: int
    pieces: Sequence[Piece]
    more: bool
    notes: Sequence[Note] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.reports or self.num_bad or self.pieces or self.notes)


class Files:
    """metrics.jsonl and the logs of an attempt's ranks. Keeps no place in them: the offsets are the caller's."""

    def __init__(self, run_dir: Path, *, num_ranks: int, max_log_bytes: int) -> None:
        self._run_dir, self._num_ranks = run_dir, num_ranks
        self._tail_bytes = min(KEPT_TAIL_BYTES, max_log_bytes // (2 * num_ranks))
        self._head_bytes = max_log_bytes - num_ranks * self._tail_bytes

    def beyond(self, offsets: Offsets, *, final: bool) -> News:
        """`final`: nobody writes them any more, so half a line is a whole one."""
        path = self._run_dir / "metrics.jsonl"
        lines = tail.read_metrics(path, offsets.metrics, limit_bytes=METRICS_BYTES)
        more = lines.end > offsets.metrics and tail.size(path) - lines.end >= METRICS_BYTES
        pieces: list[Piece] = []
        kept = offsets.kept_bytes
        for rank in range(self._num_ranks):
            found, rest = self._of_log(rank, offsets.logs.get(rank, 0), kept_bytes=kept, final=final)
            pieces += found
            kept += sum(piece.num_bytes for piece in found if piece.data is not None)
            more = more or rest
        if final:
            more = more or (lines.end > offsets.metrics and tail.size(path) > lines.end)
        return News(lines.reports, lines.num_bad, lines.end, pieces, more)

    def forget(self, piece: Piece) -> None:
        """Give back the disk under a range whose dropping is committed."""
        tail.punch(self._log_path(piece.rank), piece.offset, piece.num_bytes)

    def _of_log(self, rank: int, offset: int, *, kept_bytes: int, final: bool) -> tuple[list[Piece], bool]:
        """What of one log fits this transaction, and whether there is more."""
        path = self._log_path(rank)
        end = tail.size(path)
        limit = BATCH_BYTES // self._num_ranks
        room = self._head_bytes - kept_bytes
        if room > 0:
            limit = min(limit, max(4, room))
        elif offset < end - self._tail_bytes:
            return [Piece(rank, offset, end - self._tail_bytes - offset, None)], final
        elif not final:
            return [], False
        pieces: list[Piece] = []
        for chunk in tail.read_log(path, offset, limit_bytes=limit, final=final):
            pieces.append(Piece(rank, offset, len(chunk), chunk))
            offset += len(chunk)
        return pieces, bool(pieces) and offset < end and (final or end - offset >= limit)

    def _log_path(self, rank: int) -> Path:
        return self._run_dir / f"r{rank}.log"
