"""Owns the way from a text file to token sequences, built once on disk and mapped into memory by every rank and job.

Shapes: N sequences, T tokens in all.
"""
# ruff: noqa: N815

import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer import atomic_files
from trainer.data import sources
from trainer.data.tokenizer import Vocabulary
from trainer.errors import BadInput
from trainer.spec.config import RunConfig, TrainConfig

IntArray = npt.NDArray[np.int64]
TokenArray = npt.NDArray[np.int32]
# The tokens of a part of a document, and whether the document ends with it.
TokenPiece = tuple[TokenArray, bool]
# What is being done, and how many of how many bytes of it are done; 0 of 0 while it is waited for.
Work = Callable[[str, int, int], None]

# A tokenizer takes some hundred bytes of memory for each byte of text that it holds.
_BATCH_CHARACTERS, _BATCH_PIECES = 1 << 20, 2048
_PIECE_CHARACTERS = 1 << 16
_SEAM = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_HASHED_AT_A_TIME_BYTES = 8 << 20
# Hashing less than this again costs nothing worth remembering.
_REMEMBERED_BYTES = 64 << 20
# Part of the cache's key: raise it when the same text would give other tokens.
_FORMAT = 2
_TOKENS, _STARTS = "tokens.int32", "starts.int64"


@dataclass(frozen=True)
class Sequences:
    """Token sequences back to back: sequence i is tokens_T[starts_N1[i] : starts_N1[i + 1]].

    `digest` names the sequences, `content_sha256` the text they were made from.
    """

    tokens_T: TokenArray
    starts_N1: IntArray
    digest: str
    content_sha256: str = ""

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    def __getitem__(self, index: int) -> IntArray:
        return self.tokens_T[self.starts_N1[index] : self.starts_N1[index + 1]].astype(np.int64)

    def lengths(self) -> IntArray:
        return np.diff(self.starts_N1)


def read(
    path: Path,
    field: str,
    config: RunConfig,
    vocabulary: Vocabulary,
    cache: Path,
    say: Callable[[str], None],
    work: Work = lambda what, done, total: None,
) -> Sequences:
    """The sequences of a text file, with <s> in front and </s> behind each.

    A line of .txt, or the "text" of a line of .jsonl, is a document; either may be .gz or .zst. With line_by_line a
    document is a sequence, cut at max_seq_length; else all text is joined and cut into pieces.
    The tokens are kept under `cache` by the hash of the file, the tokenizer and the cut, so that whoever comes next
    maps them; two that come at once build them once. Neither text nor tokens are ever held in memory as a whole.
    Raises BadInput, naming file and line, for text that cannot be read or holds nothing.
    """
    if not path.is_file():
        raise BadInput(f"{field}: {path}: {'is not a file' if path.exists() else 'No such file'}")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        content = _content_sha256(path, cache, work)
        digest = _key(content, path, config, vocabulary)
        target = cache / digest
        with _locked(cache / f"{digest}.lock", lambda: work(f"waiting until {path.name} is tokenized", 0, 0)):
            if not target.is_dir():
                say(f"tokenizing {path}")
                _build(path, field, config, vocabulary, target, work)
    except PermissionError as error:
        raise BadInput(f"{field}: {error.filename}: {error.strerror}") from None
    starts_N1 = np.memmap(target / _STARTS, dtype=np.int64, mode="r")
    tokens_T = np.memmap(target / _TOKENS, dtype=np.int32, mode="r")
    return Sequences(tokens_T, starts_N1, digest, content)


def cut(lines: Iterator[str], config: TrainConfig, vocabulary: Vocabulary) -> Iterator[list[TokenArray]]:
    """The framed sequences of some lines, some at a time; never an empty list of them."""
    bodies_of = _by_document if config.line_by_line else _joined
    bos, eos = np.array([vocabulary.bos], np.int32), np.array([vocabulary.eos], np.int32)
    for bodies in bodies_of(_encoded(_pieces(lines, config.line_by_line), vocabulary), config.max_seq_length - 2):
        framed = [np.concatenate((bos, body, eos)) for body in bodies if len(body)]
        if framed:
            yield framed


def _content_sha256(path: Path, cache: Path, work: Work) -> str:
    """The hash of a file. A large one is hashed once, not by every rank of every attempt: until it is touched."""
    stat = path.stat()
    # What has only just been written could be written again within the same tick of the clock.
    if stat.st_size < _REMEMBERED_BYTES or time.time() - stat.st_ctime < 2:
        return _hash(path, work)
    facts = [str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    memory = cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.content"
    with _locked(memory.with_suffix(".lock"), lambda: work(f"waiting until {path.name} is read", 0, 0)):
        if memory.is_file():
            return memory.read_text(encoding="ascii")
        digest = _hash(path, work)
        temporary = memory.with_suffix(".tmp")
        temporary.write_text(digest, encoding="ascii")
        atomic_files.publish(temporary, memory)
        return digest


def _hash(path: Path, work: Work) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_A_TIME_BYTES):
            digest.update(block)
            work(f"reading {path.name}", file.tell(), size)
    return digest.hexdigest()


def _key(content: str, path: Path, config: RunConfig, vocabulary: Vocabulary) -> str:
    cut = [_FORMAT, config.line_by_line, config.max_seq_length, *sources.layout(path)]
    return hashlib.sha256(json.dumps([content, vocabulary.digest, cut]).encode()).hexdigest()


@contextmanager
def _locked(path: Path, wait: Callable[[], None]) -> Generator[None]:
    """Holds a lock that ends with the process. While another has it, `wait` is called a few times a second."""
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
                time.sleep(0.2)
        yield


def _build(path: Path, field: str, config: RunConfig, vocabulary: Vocabulary, target: Path, work: Work) -> None:
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    end, size = 0, path.stat().st_size
    with (temporary / _TOKENS).open("wb") as tokens, (temporary / _STARTS).open("wb") as starts:
        starts.write(np.zeros(1, np.int64).tobytes())
        with sources.documents(path, field) as source:
            for sequences in cut(source.lines, config, vocabulary):
                starts_N = end + np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
                starts.write(starts_N.tobytes())
                tokens.write(np.concatenate(sequences).tobytes())
                end = int(starts_N[-1])
                work(f"tokenizing {path.name}", source.bytes_read(), size)
    if not end:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(_why_empty(path, field))
    atomic_files.publish(temporary, target)


def _why_empty(path: Path, field: str) -> str:
    with sources.documents(path, field) as source:
        if any(line.strip() for line in source.lines):
            return f"tokenizer_name: it makes no token of the text in {path}; take the tokenizer of this kind of text"
    return f"{field}: {path} has no text in it"


def _by_document(encoded: Iterator[list[TokenPiece]], room: int) -> Iterator[list[TokenArray]]:
    parts: list[TokenArray] = []
    left = room
    for batch in encoded:
        bodies: list[TokenArray] = []
        for tokens, is_last in batch:
            parts.append(tokens[:left])
            left -= len(parts[-1])
            if is_last:
                bodies.append(np.concatenate(parts))
                parts, left = [], room
        yield bodies


def _joined(encoded: Iterator[list[TokenPiece]], room: int) -> Iterator[list[TokenArray]]:
    rest = np.empty(0, np.int32)
    for batch in encoded:
        rest = np.concatenate([rest, *(tokens for tokens, _ in batch)])
        whole = len(rest) // room * room
        yield list(rest[:whole].reshape(-1, room))
        rest = rest[whole:]
    yield [rest]


def _encoded(pieces: Iterator[tuple[str, bool]], vocabulary: Vocabulary) -> Iterator[list[TokenPiece]]:
    for batch in _batches(pieces):
        encodings = vocabulary.tokenizer.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
        yield [(np.asarray(e.ids, np.int32), is_last) for e, (_, is_last) in zip(encodings, batch, strict=True)]


def _batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if len(batch) == _BATCH_PIECES or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(lines: Iterator[str], line_by_line: bool) -> Iterator[tuple[str, bool]]:
    """Parts of documents, and whether a document ends with them. Blank lines count only between others, when joined."""
    has_text = False
    for line in lines:
        document = line.strip() if line_by_line else f"{line}\n"
        has_text = (has_text and not line_by_line) or bool(document.strip())
        if has_text:
            yield from _parts(document)


def _parts(document: str) -> Iterator[tuple[str, bool]]:
    """Cuts a long document in front of a space between two words, where every tokenizer begins a word anyway."""
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        seam = _SEAM.search(document, start + _PIECE_CHARACTERS)
        if seam is None:
            break
        yield document[start : seam.start()], False
        start = seam.start()
    yield document[start:], True
