"""Rank logs as bytes at offsets: append in order, read from an offset, from the end, or after a cursor.

Beyond the cap ranges may be missing: an offset inside one reads on from the next byte that is there, and the caller sees the jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Integer, bindparam, select
from sqlalchemy.orm import Session

from store.models import Attempt, Job, LogChunk, RankLog

_SINCE: Final = (
    select(Attempt.number, LogChunk)
    .join(Attempt, Attempt.id == LogChunk.attempt_id)
    .where(LogChunk.job_id == bindparam("job_id"), LogChunk.rev > bindparam("after_rev"))
    .order_by(LogChunk.rev, LogChunk.rank, LogChunk.offset)
    .limit(bindparam("limit", type_=Integer))
)


def append(session: Session, job: Job, *, attempt_id: str, rank: int, offset: int, data: bytes) -> None:
    """In a transaction that `attempts.renew` opened. `offset` is the committed end: anything else is a bug, and a ValueError."""
    log = _log(session, attempt_id, rank)
    if offset != log.end_offset:
        raise ValueError(f"log of rank {rank} ends at {log.end_offset}, not at {offset}")
    if not data:
        return
    session.add(
        LogChunk(
            attempt_id=attempt_id, rank=rank, offset=offset, job_id=job.id, rev=job.rev, num_bytes=len(data), data=data
        )
    )
    log.end_offset += len(data)


def drop(session: Session, *, attempt_id: str, rank: int, offset: int, num_bytes: int) -> None:
    """Go past bytes that are not kept. In a transaction that `attempts.renew` opened."""
    log = _log(session, attempt_id, rank)
    if offset != log.end_offset:
        raise ValueError(f"log of rank {rank} ends at {log.end_offset}, not at {offset}")
    log.end_offset += num_bytes
    log.dropped_bytes += num_bytes


def ends(session: Session, attempt_id: str) -> dict[int, int]:
    """The committed end of each rank's log, in bytes, by rank."""
    return {
        log.rank: log.end_offset for log in session.scalars(select(RankLog).where(RankLog.attempt_id == attempt_id))
    }


def dropped(session: Session, attempt_id: str) -> dict[int, int]:
    """How many bytes of each rank's log were not kept, by rank."""
    return {
        log.rank: log.dropped_bytes for log in session.scalars(select(RankLog).where(RankLog.attempt_id == attempt_id))
    }


def read(session: Session, attempt_id: str, *, rank: int, offset: int = 0, limit_bytes: int) -> tuple[int, bytes]:
    """Contiguous bytes from `offset`, or from the first one kept after it: (where they start, the bytes). Empty at the end."""
    chunks = session.execute(
        select(LogChunk.offset, LogChunk.data)
        .where(LogChunk.attempt_id == attempt_id, LogChunk.rank == rank, LogChunk.offset + LogChunk.num_bytes > offset)
        .order_by(LogChunk.offset)
        .execution_options(yield_per=8)
    )
    start, parts, length = offset, list[bytes](), 0
    for chunk_offset, data in chunks:
        if not parts:
            start = max(offset, chunk_offset)
        elif chunk_offset != start + length:
            break
        part = data[start + length - chunk_offset :]
        parts.append(part)
        length += len(part)
        if length >= limit_bytes:
            break
    chunks.close()
    return start, b"".join(parts)[:limit_bytes]


def tail(session: Session, attempt_id: str, *, rank: int, lines: int, limit_bytes: int) -> tuple[int, bytes]:
    """The last `lines` lines, of at most the last `limit_bytes`: (where they start, the bytes)."""
    chunks = session.execute(
        select(LogChunk.offset, LogChunk.data)
        .where(LogChunk.attempt_id == attempt_id, LogChunk.rank == rank)
        .order_by(LogChunk.offset.desc())
        .execution_options(yield_per=8)
    )
    start, found = 0, b""
    for chunk_offset, data in chunks:
        if found and chunk_offset + len(data) != start:
            break
        start, found = chunk_offset, data + found
        # One newline more than lines: what stands before it belongs to an earlier line.
        if found.rstrip(b"\n").count(b"\n") >= lines or len(found) >= limit_bytes:
            break
    chunks.close()
    kept = _last_lines(found, lines)
    kept = kept[-limit_bytes:]
    return start + len(found) - len(kept), kept


def since(session: Session, job_id: str, *, after_rev: int, limit: int) -> Sequence[tuple[int, LogChunk]]:
    """Chunks written after the cursor with their attempt's number, in the order of writing."""
    rows = session.execute(_SINCE, {"job_id": job_id, "after_rev": after_rev, "limit": limit}).all()
    return [(number, chunk) for number, chunk in rows]


def _last_lines(data: bytes, lines: int) -> bytes:
    """Lines end at a newline alone: a progress bar's carriage returns stay inside theirs."""
    if lines <= 0:
        return b""
    start = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        start = data.rfind(b"\n", 0, max(0, start))
        if start < 0:
            return data
    return data[start + 1 :]


def _log(session: Session, attempt_id: str, rank: int) -> RankLog:
    log = session.get(RankLog, (attempt_id, rank))
    if log is None:
        log = RankLog(attempt_id=attempt_id, rank=rank, end_offset=0, dropped_bytes=0)
        session.add(log)
    return log
