"""Owns the reading of an attempt's files from committed offsets: metrics.jsonl in whole lines, rank logs in chunks."""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from store.metrics import Point

CHUNK_BYTES: Final = 64 * 1024
"""A log line longer than this is split here."""
MAX_NAME_CHARS: Final = 128
MAX_WORD_CHARS: Final = 16
KINDS: Final = ("metrics", "phase", "checkpoint", "startup")
MAX_PARTS: Final = 32
MAX_STEP: Final = 2**31 - 1
"""What the database's columns hold; a spec may ask for 100 million."""

LONGEST_S: Final = 10 * 365 * 86_400.0
_PUNCH_HOLE_KEEP_SIZE: Final = 0x2 | 0x1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Metrics:
    """One report: its points, all of one step."""

    step: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Phase:
    """load, train, evaluate, save or end; `total_steps` once it is known."""

    phase: str
    step: int | None
    total_steps: int | None


@dataclass(frozen=True)
class Published:
    """A checkpoint that is whole on the disk."""

    step: int
    dir: str
    manifest_sha256: str


@dataclass(frozen=True)
class StartUp:
    """Where the time went between a rank's start and its first step: seconds by part, in their order."""

    parts: Mapping[str, float]


@dataclass(frozen=True)
class Unknown:
    """A line of a kind that this worker has not heard of: a newer trainer's."""


Report = Metrics | Phase | Published | StartUp | Unknown


@dataclass(frozen=True)
class Progress:
    """What a rank overwrites after every step; `monotonic` is its own clock."""

    step: int
    total_steps: int | None
    phase: str | None
    monotonic: float


@dataclass(frozen=True)
class Lines:
    """Whole lines of metrics.jsonl: what they say, where they end, and how many said nothing that can be understood."""

    reports: tuple[Report, ...]
    end: int
    num_bad: int


def read_metrics(path: Path, offset: int, *, limit_bytes: int) -> Lines:
    """A line that is still being written stays for the next time. One longer than the limit is passed over."""
    data = _read(path, offset, limit_bytes)
    cut = data.rfind(b"\n") + 1
    if cut == 0:
        return Lines((), offset + limit_bytes, 1) if len(data) == limit_bytes else Lines((), offset, 0)
    parsed = [parse(line) for line in data[:cut].splitlines() if line.strip()]
    reports = tuple(report for report in parsed if report is not None)
    return Lines(reports, offset + cut, len(parsed) - len(reports))


def read_log(path: Path, offset: int, *, limit_bytes: int, final: bool) -> list[bytes]:
    """Contiguous chunks of at most `CHUNK_BYTES`, cut behind a line where one ends in the chunk.

    A character that is half written stays for the next time, unless this is the `final` reading.
    """
    data = _read(path, offset, limit_bytes)
    if not final or len(data) == limit_bytes:
        data = data[: len(data) - _half_character(data)]
    chunks: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + CHUNK_BYTES
        if end < len(data):
            line_end = data.rfind(b"\n", start, end) + 1
            end = line_end if line_end > start else end - _half_character(data[start:end])
        chunks.append(data[start:end])
        start = end
    return chunks


def read_progress(path: Path) -> Progress | None:
    """None before the first step, and where the file is not what a trainer writes."""
    fields = decode(_read(path, 0, 4096))
    if fields is None:
        return None
    step, clock = _count(fields.get("step")), _number(fields.get("monotonic"))
    if step is None or clock is None or not math.isfinite(clock):
        return None
    return Progress(step, _count(fields.get("total_steps")), _word(fields.get("phase")), clock)


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def punch(path: Path, offset: int, num_bytes: int) -> None:
    """Give the disk back a range that nobody will read; offsets stay. Not every file system can, and then nothing happens."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(num_bytes))
    finally:
        os.close(descriptor)


def parse(line: bytes) -> Report | None:
    """One line of metrics.jsonl; None for anything that is not one."""
    fields = decode(line)
    if fields is None:
        return None
    kind, step = fields.get("kind"), _count(fields.get("step"))
    if kind == "metrics" and step is not None and isinstance(fields.get("values"), dict):
        at = _time(fields.get("at"))
        values = cast(dict[str, Any], fields["values"])
        numbers = {clean(name)[:MAX_NAME_CHARS]: _number(values[name]) for name in values}
        return Metrics(
            step, tuple(Point(name, step, number, at) for name, number in numbers.items() if number is not None)
        )
    if kind == "phase" and (phase := _word(fields.get("phase"))):
        return Phase(phase, step, _count(fields.get("total_steps")))
    if kind == "checkpoint" and step is not None:
        return _published(step, fields)
    if kind == "startup" and isinstance(fields.get("parts"), dict):
        return _start_up(cast(dict[str, Any], fields["parts"]))
    return Unknown() if isinstance(kind, str) and kind not in KINDS else None


def decode(data: bytes) -> dict[str, Any] | None:
    """A JSON object that a rank wrote; None for anything else, also for what is nested deeper than can be read."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def clean(text: str) -> str:
    """Text that every database takes: NULs and halves of surrogate pairs become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def printable(text: str) -> str:
    """Text for tables and rows: whatever cannot be printed, NULs among it, becomes U+FFFD."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


class Pace:
    """How long a step takes, from the last ones a rank told, by the rank's own clock."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=64)

    def saw(self, step: int, clock: float) -> None:
        if self._seen and (step < self._seen[-1][0] or clock < self._seen[-1][1]):
            self._seen.clear()
        if not self._seen or step > self._seen[-1][0]:
            self._seen.append((step, clock))

    def left_s(self, total_steps: int | None) -> float | None:
        """Seconds until the last step; None before two steps were seen, and where it comes to longer than anybody waits."""
        if total_steps is None or len(self._seen) < 2:
            return None
        (first, began), (last, now) = self._seen[0], self._seen[-1]
        left_s = max(0, total_steps - last) * (now - began) / (last - first)
        return left_s if left_s <= LONGEST_S else None


def _published(step: int, fields: dict[str, Any]) -> Published | None:
    directory, digest = fields.get("dir"), fields.get("manifest_sha256")
    if (
        not isinstance(directory, str)
        or clean(directory) != directory
        or not isinstance(digest, str)
        or len(digest) != 64
    ):
        return None
    return Published(step, directory, digest)


def _start_up(parts: dict[str, Any]) -> StartUp:
    named = {clean(name)[:MAX_WORD_CHARS]: _number(value) for name, value in list(parts.items())[:MAX_PARTS]}
    return StartUp(
        {name: round(value, 4) for name, value in named.items() if value is not None and 0 <= value < math.inf}
    )


def _read(path: Path, offset: int, limit_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, limit_bytes, offset)
    finally:
        os.close(descriptor)


def _half_character(data: bytes) -> int:
    """Bytes at the end that start a UTF-8 character and do not finish it: 0 to 3."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return length if needed > length else 0
    return 0


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STEP else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_WORD_CHARS and value.isprintable() else None


def _number(value: object) -> float | None:
    """JSON has no NaN and no infinities: the trainer writes them as words."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _time(value: object) -> datetime:
    """Epoch seconds or RFC 3339; now, where the trainer tells neither."""
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return datetime.now(UTC)
