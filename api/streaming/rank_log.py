"""One rank's log as text: a range of it read piece by piece, or followed while it grows. Routes decide, this reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from api.log_text import MAX_CUT_BYTES, Decoder, Lines, cut
from api.state import Plane
from store import attempts, jobs, logs
from store.db import Database
from store.models import Attempt
from store.pubsub import channel_job
from store.states import OPEN_ATTEMPT, TERMINAL_JOB
from store.tokens import Identity

PIECE_BYTES: Final = 256 * 1024
MAX_BYTES: Final = 8 << 20
"""What one answer holds, but for one that follows."""


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of one rank's log in one attempt."""

    attempt_id: str
    rank: int
    start: int
    stop: int


def whole(session: Session, attempt: Attempt, *, rank: int, offset: int) -> Span:
    """From `offset` to the end, of at most MAX_BYTES."""
    end = logs.ends(session, attempt.id).get(rank, 0)
    start = min(offset, end)
    return _closed_off(session, attempt, rank, start, min(end, start + MAX_BYTES), end)


def last_lines(session: Session, attempt: Attempt, *, rank: int, lines: int) -> Span:
    start, data = logs.tail(session, attempt.id, rank=rank, lines=lines, limit_bytes=MAX_BYTES)
    return _closed_off(session, attempt, rank, start, start + len(data), start + len(data))


def text_of(database: Database, span: Span, needle: str | None) -> Iterator[str]:
    """The span's text, piece by piece, each read in a session of its own."""
    text, offset = _Text(needle), span.start
    while offset < span.stop:
        with database.read() as session:
            start, data = logs.read(
                session,
                span.attempt_id,
                rank=span.rank,
                offset=offset,
                limit_bytes=min(PIECE_BYTES, span.stop - offset),
            )
        data = data[: max(0, span.stop - start)]
        if not data:
            break
        yield text.at(offset, start, data)
        offset = start + len(data)
    yield text.finish()


async def follow(
    plane: Plane, caller: Identity, job_id: str, *, number: int, only: bool, rank: int, offset: int, needle: str | None
) -> AsyncIterator[str]:
    """The log of attempt `number` from `offset` on, then of those after it until the job ends; of that one alone where `only`."""
    text = _Text(needle)
    with plane.streams.open(caller) as stream:
        async with plane.hub.listening(stream.wake, channel_job(job_id)):
            while not stream.ended:
                look = await plane.reading(_look, plane.database, job_id, number, rank, offset)
                if look.data:
                    yield text.at(offset, look.start, look.data)
                    offset = look.start + len(look.data)
                elif look.job_ended or (only and look.attempt_closed):
                    break
                elif look.attempt_closed and look.has_next:
                    number, offset = number + 1, 0
                    yield f"{text.finish()}--- attempt {number} ---\n"
                    text = _Text(needle)
                else:
                    await stream.wait(plane.hub.poll_s)
            yield text.finish()


@dataclass(frozen=True)
class _Look:
    start: int
    data: bytes
    attempt_closed: bool
    has_next: bool
    job_ended: bool


def _look(database: Database, job_id: str, number: int, rank: int, offset: int) -> _Look:
    """States first, bytes after: what is closed here has all its bytes in the second read."""
    with database.read() as session:
        job = jobs.get(session, job_id)
        attempt = attempts.numbered(session, job_id, number)
        if attempt is None:
            return _Look(offset, b"", attempt_closed=False, has_next=False, job_ended=job.status in TERMINAL_JOB)
        closed = attempt.status not in OPEN_ATTEMPT
        start, data = logs.read(session, attempt.id, rank=rank, offset=offset, limit_bytes=PIECE_BYTES)
        has_next = job.num_attempts > number
        job_ended = closed and not has_next and job.status in TERMINAL_JOB
        return _Look(start, data, attempt_closed=closed, has_next=has_next, job_ended=job_ended)


def _closed_off(session: Session, attempt: Attempt, rank: int, start: int, stop: int, end: int) -> Span:
    """A stop that falls into a character moves before it, so that reading on from there shows it whole."""
    if start < stop and (stop < end or attempt.status in OPEN_ATTEMPT):
        begin = max(start, stop - MAX_CUT_BYTES)
        found, data = logs.read(session, attempt.id, rank=rank, offset=begin, limit_bytes=stop - begin)
        if found + len(data) == stop:
            stop -= cut(data)
    return Span(attempt.id, rank, start, stop)


class _Text:
    """Bytes in order to text to show; says where some were dropped."""

    def __init__(self, needle: str | None) -> None:
        self._decoder, self._lines = Decoder(), Lines(needle) if needle else None

    def at(self, expected: int, start: int, data: bytes) -> str:
        dropped = f"{self.finish()}\n[{start - expected} bytes of this log were not kept]\n" if start > expected else ""
        return dropped + self._shown(self._decoder.feed(data))

    def finish(self) -> str:
        shown = self._shown(self._decoder.finish())
        return shown + (self._lines.finish() if self._lines else "")

    def _shown(self, text: str) -> str:
        return self._lines.feed(text) if self._lines else text
