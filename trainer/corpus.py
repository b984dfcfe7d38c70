"""Owns the way from a text file to token sequences, built once on disk and mapped into memory by every rank and job.

Shapes: N sequences, T tokens in all.
"""
# ruff: noqa: N815

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import zstandard

from trainer.config import RunConfig
from trainer.errors import BadInput
from trainer.tokenizer import Vocabulary

IntArray = npt.NDArray[np.int64]

LINE_LIMIT_BYTES = 16 << 20
_LINES_AT_A_TIME = 2048
# Part of the cache's key: raise it when the same text would give other tokens.
_FORMAT = 1
_TOKENS, _STARTS = "tokens.int32", "starts.int64"


@dataclass(frozen=True)
class Sequences:
    """Token sequences back to back: sequence i is tokens_T[starts_N1[i] : starts_N1[i + 1]]."""

    tokens_T: npt.NDArray[np.int32]
    starts_N1: IntArray
    digest: str

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    def __getitem__(self, index: int) -> IntArray:
        return self.tokens_T[self.starts_N1[index] : self.starts_N1[index + 1]].astype(np.int64)

    def lengths(self) -> IntArray:
        return np.diff(self.starts_N1)


def read(
    path: Path, field: str, config: RunConfig, vocabulary: Vocabulary, cache: Path, say: Callable[[str], None]
) -> Sequences:
    """The sequences of a text file, with <s> in front and </s> behind each.

    A line of .txt, or the "text" of a line of .jsonl, is a document; either may be .gz or .zst. With line_by_line a
    document is a sequence, cut at max_seq_length; else all text is joined and cut into pieces.
    The tokens are kept under `cache` by the hash of the file, the tokenizer and the cut, so that whoever comes next
    maps them; two that come at once build them once.
    Raises BadInput, naming file and line, for text that cannot be read or holds nothing.
    """
    try:
        digest = _key(path, config, vocabulary)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadInput(f"{field}: {path}: {error.strerror}") from None
    target = cache / digest
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            say(f"tokenizing {path}")
            _build(path, field, config, vocabulary, target)
    starts_N1 = np.load(target / _STARTS, mmap_mode="r")
    tokens_T = np.memmap(target / _TOKENS, dtype=np.int32, mode="r")
    return Sequences(tokens_T, starts_N1, digest)


def _key(path: Path, config: RunConfig, vocabulary: Vocabulary) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    cut = [_FORMAT, config.line_by_line, config.max_seq_length, path.suffixes[-2:]]
    return hashlib.sha256(json.dumps([content, vocabulary.digest, cut]).encode()).hexdigest()


def _build(path: Path, field: str, config: RunConfig, vocabulary: Vocabulary, target: Path) -> None:
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    lengths: list[int] = []
    with (temporary / _TOKENS).open("wb") as out:
        for piece in _pieces(path, field, config, vocabulary):
            framed = np.empty(len(piece) + 2, np.int32)
            framed[0], framed[-1] = vocabulary.bos, vocabulary.eos
            framed[1:-1] = piece
            out.write(framed.tobytes())
            lengths.append(len(framed))
        out.flush()
        os.fsync(out.fileno())
    if not lengths:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(f"{field}: {path} has no text in it")
    starts_N1 = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts_N1[1:])
    with (temporary / _STARTS).open("wb") as out:
        np.save(out, starts_N1)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(target)


def _pieces(path: Path, field: str, config: RunConfig, vocabulary: Vocabulary) -> Iterator[IntArray]:
    room = config.max_seq_length - 2
    rest = np.empty(0, np.int64)
    for documents in _batches(_documents(path, field)):
        if config.line_by_line:
            texts = [text for document in documents if (text := document.strip())]
            for encoded in vocabulary.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                if encoded.ids:
                    yield np.asarray(encoded.ids[:room], np.int64)
            continue
        texts = [f"{document}\n" for document in documents]
        encoded_all = vocabulary.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        rest = np.concatenate([rest, *(np.asarray(encoded.ids, np.int64) for encoded in encoded_all)])
        whole = len(rest) // room * room
        yield from rest[:whole].reshape(-1, room)
        rest = rest[whole:]
    if len(rest) and not config.line_by_line:
        yield rest


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if len(batch) == _LINES_AT_A_TIME or size > LINE_LIMIT_BYTES:
            yield batch
            batch, size = [], 0
    if any(document.strip() for document in batch):
        yield batch


def _documents(path: Path, field: str) -> Iterator[str]:
    is_jsonl = ".jsonl" in path.suffixes
    with _open(path) as file:
        number = 0
        while raw := _line(file, f"{field}: {path}:{number + 1}"):
            number += 1
            where = f"{field}: {path}:{number}"
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise BadInput(f"{where}: not UTF-8 at byte {error.start}") from None
            yield _text(line, where) if is_jsonl else line


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, zstandard.open(path, "rb"))))
    return path.open("rb")


def _line(file: BinaryIO, where: str) -> bytes:
    try:
        raw = file.readline(LINE_LIMIT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
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
    return text
