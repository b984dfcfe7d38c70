"""Owns reading documents out of a text file: .txt or .jsonl, plain, .gz or .zst. Holds one line at a time."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import zstandard

from trainer.errors import BadInput

LINE_LIMIT_BYTES = 16 << 20
_COMPRESSED = (".gz", ".zst")
_RECORDS = (".jsonl", ".json")
# A few bytes of zstd can stand for 128 KiB of text; what is decompressed at a time stays within some megabytes.
_COMPRESSED_AT_A_TIME_BYTES = 512


class Documents(NamedTuple):
    """An open file's documents, one a line, and how many of its bytes they have taken so far."""

    lines: Iterator[str]
    bytes_read: Callable[[], int]


@contextmanager
def documents(path: Path, field: str, *, start: int = 0) -> Generator[Documents]:
    """The lines of .txt, or the "text" of the lines of .jsonl, without their line ends.

    With `start`, which only a file that is not compressed allows, from the first line that begins behind that byte.

    Raises BadInput with file and line for bytes that are not text, a line above 16 MiB, or a record without text.
    """
    with path.open("rb") as raw:
        if start:
            raw.seek(start)
            _line(raw, f"{field}: {path}: behind byte {start}")
        yield Documents(_documents(_unpack(raw, path), path, field), raw.tell)


def layout(path: Path) -> tuple[bool, str]:
    """Whether a file holds JSON records, and how it is compressed: ".gz", ".zst" or ""."""
    compression = path.suffix if path.suffix in _COMPRESSED else ""
    name = path.with_suffix("") if compression else path
    return name.suffix in _RECORDS, compression


def _unpack(raw: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Frames(raw), _COMPRESSED_AT_A_TIME_BYTES * 1024))
    return raw


class _Frames(io.RawIOBase):
    """The content of zstd frames behind each other, as parallel compressors write them.

    The library's own reader takes a file that was cut off for one that has ended.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            block = self._rest or self._raw.read(_COMPRESSED_AT_A_TIME_BYTES)
            if not block:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._content = self._frame.decompress(block)
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size


def _documents(file: BinaryIO, path: Path, field: str) -> Iterator[str]:
    holds_records = layout(path)[0]
    number = 0
    while raw := _line(file, f"{field}: {path}:{number + 1}"):
        number += 1
        where = f"{field}: {path}:{number}"
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: not UTF-8 at byte {error.start}") from None
        yield _text(line, where) if holds_records else line


def _line(file: BinaryIO, where: str) -> bytes:
    try:
        raw = file.readline(LINE_LIMIT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise BadInput(f"{where}: the compressed file is broken: {error}") from None
    if len(raw) > LINE_LIMIT_BYTES:
        raise BadInput(f"{where}: the line is longer than 16 MiB; break it up")
    return raw


def _text(line: str, where: str) -> str:
    if not line.strip():
        return ""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not JSON; a .jsonl file holds one object a line") from None
    text = cast(dict[str, Any], record).get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'{where}: has no "text" column; each line is {{"text": "…"}}')
    if "\\u" in line and not _is_encodable(text):
        raise BadInput(f"{where}: its text has half of a surrogate pair, which is no character")
    return text


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
