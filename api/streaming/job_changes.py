"""What changed on a job after a cursor, as Server-Sent Events: read in one look, encoded once, exact across reconnects.

Rows are stamped with the job's `rev` of their transaction and never change, so every message has a place in one fixed order. A message's
`id` is the cursor after it: `57` once everything of rev 57 is sent, `57-2` after the second message of rev 57.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from fastapi.sse import format_sse_event
from sqlalchemy.orm import Session

from api import log_text, serializers
from api.streaming.connections import Batch
from store import events, jobs, logs, metrics
from store.db import Database
from store.models import Event, Job, LogChunk, MetricPoint
from store.states import TERMINAL_JOB

MAX_LOG_CHUNKS: Final = 32
MAX_POINTS: Final = 2000
MAX_EVENTS: Final = 200

_CURSOR: Final = re.compile(r"(\d{1,18})(?:-(\d{1,9}))?")
_Row = TypeVar("_Row")


@dataclass(frozen=True, order=True)
class Cursor:
    """All of `rev` and before is sent, and the first `num_sent` messages of the rev after it."""

    rev: int
    num_sent: int = 0


def parse(text: str) -> Cursor:
    """Raises ValueError for what no message of ours has carried as its id."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise ValueError(f"no cursor: {text[:64]!r}")
    rev, num_sent = int(found[1]), int(found[2] or 0)
    return Cursor(rev - 1, num_sent) if num_sent and rev else Cursor(rev)


def read(database: Database, job_id: str, cursor: Cursor) -> Batch:
    """Everything after the cursor, up to where one batch is full. Raises store.errors.NotFound."""
    with database.read() as session:
        job = jobs.get(session, job_id)
        if cursor.rev > job.rev:  # a cursor from before the database was restored: begin anew
            cursor = Cursor(0)
        if cursor == Cursor(job.rev):
            return Batch(
                job.rev, job.rev, _end(job.rev) if job.status in TERMINAL_JOB else b"", ended=job.status in TERMINAL_JOB
            )
        upto, messages = _rows(session, job, after=cursor.rev)
        parts = list(_numbered(messages, cursor, upto))
        more = upto < job.rev
        if not more:
            parts.append(event("job", serializers.one(session, job).model_dump_json(), str(upto)))
        ended = not more and job.status in TERMINAL_JOB
        if ended:
            parts.append(_end(upto))
        return Batch(cursor.rev, upto, b"".join(parts), ended=ended, more=more)


def event(kind: str, data: str, cursor: str | None = None) -> bytes:
    return format_sse_event(event=kind, data_str=data, id=cursor)


@dataclass(frozen=True)
class _Message:
    rev: int
    kind: str
    data: str


def _end(rev: int) -> bytes:
    return event("end", "{}", str(rev))


def _numbered(messages: Iterable[_Message], cursor: Cursor, upto: int) -> Iterable[bytes]:
    """Encode in order, leaving out what the cursor says was sent.

    No message claims the whole of the last rev: that is for the `job` message after them, so a client cut off before it gets it again.
    """
    rev, position = 0, 0
    for message in messages:
        position = position + 1 if message.rev == rev else 1
        rev = message.rev
        if rev == cursor.rev + 1 and position <= cursor.num_sent:
            continue
        yield event(message.kind, message.data, f"{rev}-{position}")


def _rows(session: Session, job: Job, *, after: int) -> tuple[int, list[_Message]]:
    """Messages after a rev, ordered by rev and kind, and the last rev that was read whole."""
    upto = job.rev
    chunks, points = list[tuple[int, LogChunk]](), list[tuple[int, MetricPoint]]()
    if job.num_attempts:
        chunks, upto = _page(
            lambda limit: logs.since(session, job.id, after_rev=after, limit=limit),
            _rev_of_pair,
            MAX_LOG_CHUNKS,
            after,
            upto,
        )
    facts, upto = _page(
        lambda limit: events.since(session, job.id, after_rev=after, limit=limit), _rev, MAX_EVENTS, after, upto
    )
    if job.num_attempts:
        points, upto = _page(
            lambda limit: metrics.since(session, job.id, after_rev=after, limit=limit),
            _rev_of_pair,
            MAX_POINTS,
            after,
            upto,
        )
    messages = [
        *(message for number, chunk in chunks if (message := _log(session, number, chunk))),
        *(_Message(fact.rev, "event", serializers.event(fact).model_dump_json()) for fact in facts),
        # A point may be written again, which takes it out of its rev: so points come last there, and no place before them moves.
        *_points(points),
    ]
    messages = [message for message in messages if message.rev <= upto]
    messages.sort(key=lambda message: message.rev)
    return upto, messages


def _page(
    read_rows: Callable[[int], Sequence[_Row]], rev_of: Callable[[_Row], int], limit: int, after: int, upto: int
) -> tuple[list[_Row], int]:
    """Rows of whole revs only: the last rev of a full page may go on, unless it is the only one, which is then read whole."""
    rows = read_rows(limit)
    while len(rows) == limit and rev_of(rows[-1]) == rev_of(rows[0]):
        limit *= 2
        rows = read_rows(limit)
    if len(rows) == limit:
        upto = min(upto, max(after + 1, rev_of(rows[-1]) - 1))
    return [row for row in rows if rev_of(row) <= upto], upto


def _rev(row: Event) -> int:
    return row.rev


def _rev_of_pair(row: tuple[int, LogChunk | MetricPoint]) -> int:
    return row[1].rev


def _log(session: Session, number: int, chunk: LogChunk) -> _Message | None:
    """A chunk's text. What its last bytes begin is left to the chunk after it, so what the one before it left comes first here."""
    data, offset = chunk.data, chunk.offset
    if offset > 0:
        start = max(0, offset - log_text.MAX_CUT_BYTES)
        found, before = logs.read(session, chunk.attempt_id, rank=chunk.rank, offset=start, limit_bytes=offset - start)
        # Where bytes before it were dropped, what is found may begin later, or with this chunk itself.
        held = before[len(before) - log_text.cut(before) :] if found + len(before) == offset else b""
        data, offset = held + data, offset - len(held)
    data = data[: len(data) - log_text.cut(data)]
    if not data:
        return None
    body = {
        "attempt": number,
        "rank": chunk.rank,
        "offset": offset,
        "end": offset + len(data),
        "text": log_text.text(data),
    }
    return _Message(chunk.rev, "log", orjson.dumps(body).decode())


def _points(points: Sequence[tuple[int, MetricPoint]]) -> Iterable[_Message]:
    grouped: dict[tuple[int, int], dict[str, list[Any]]] = {}
    for number, point in points:
        one = serializers.point(point.step, point.value, point.at, point.flag)
        grouped.setdefault((point.rev, number), {}).setdefault(point.name, []).append(one)
    for (rev, number), series in grouped.items():
        yield _Message(rev, "metrics", orjson.dumps({"attempt": number, "series": series}).decode())
