"""Owns the look at a job's corpus and tokenizer before its ranks get cards: what is plainly no text, or no tokenizer, is told in words.

It reads the head of a corpus and a tokenizer's JSON; what is wrong further on, the trainer finds.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import orjson

from store.data_roots import is_wrong_path, resolve
from store.errors import PathRefused, PathUnreachable
from store.settings import Settings

HEAD_BYTES: Final = 256 * 1024
TOKENIZER_LIMIT_BYTES: Final = 64 << 20
LFS: Final = b"version https://git-lfs.github.com/spec/"
COMPRESSED: Final[Mapping[str, bytes]] = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
SPECIAL: Final = (("<s>", "[CLS]"), ("<pad>", "[PAD]"), ("</s>", "[SEP]"), ("<unk>", "[UNK]"), ("<mask>", "[MASK]"))

_CHECKED: Final = ("train_file", "validation_file", "tokenizer_name")


class Problem(NamedTuple):
    """What is wrong with the input at `path`, which `train.<field>` names. Not `is_users`: what it lies on is at fault."""

    field: str
    path: str
    words: str
    is_users: bool = True

    @property
    def sentence(self) -> str:
        return f"train.{self.field} ({self.path}) {self.words}"


class Known:
    """What was found of files that have not changed since: (path, time, size, inode) → words, or None for well."""

    def __init__(self, found: Mapping[str, str | None] | None = None) -> None:
        self.found: dict[str, str | None] = dict(found or {})

    def problems(self, settings: Settings, train: Mapping[str, Any]) -> Iterator[Problem]:
        """Of a spec's inputs. Paths outside the data roots are not looked at: others refuse them."""
        for field in _CHECKED:
            value = train.get(field)
            is_file = field != "tokenizer_name"
            if not isinstance(value, str) or not value.startswith("/"):
                continue
            try:
                path = resolve(value, roots=settings.data_roots, kind="file" if is_file else "directory")
                words = self._look(path, is_file=is_file)
            except PathUnreachable as error:
                yield Problem(field, value, str(error), is_users=False)
            except PathRefused:
                continue
            except OSError as error:
                yield Problem(field, value, f"cannot be read ({error.strerror})", is_users=is_wrong_path(error))
            else:
                if words is not None:
                    yield Problem(field, value, words)

    def _look(self, path: Path, *, is_file: bool) -> str | None:
        key = _stamp(path) if is_file else "|".join(_stamp(one) for one in _tokenizer_files(path))
        if key not in self.found:
            self.found[key] = of_corpus(path) if is_file else of_tokenizer(path)
        return self.found[key]


def of_corpus(path: Path) -> str | None:
    """What is wrong with the head of a text file, in words that say the way out; None where nothing is. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(LFS):
        return "is a pointer of Git LFS and not the file itself; fetch it by `git lfs pull`"
    magic = COMPRESSED.get(path.suffix)
    if magic is not None:
        return None if head.startswith(magic) else f"is named {path.suffix} and is not compressed so; rename it"
    for suffix, start in COMPRESSED.items():
        if head.startswith(start):
            return f"is compressed; give it the ending {suffix}"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16; write it again as UTF-8, as by: iconv -f UTF-16 -t UTF-8"
    if b"\0" in head:
        return f"has a NUL at byte {head.index(0)}, so it is no text"
    try:
        # The last character of a head may be cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError as error:
        return f"is not UTF-8 at byte {error.start}; write it again as UTF-8"
    return None if text.strip() else f"has no text in its first {len(head)} bytes"


def of_tokenizer(directory: Path) -> str | None:
    """What is wrong with a tokenizer's directory; None where nothing is, or where it is too large to look at. Raises OSError."""
    path = next(iter(_tokenizer_files(directory)), None)
    if path is None or path.stat().st_size > TOKENIZER_LIMIT_BYTES:
        return None
    data = path.read_bytes()
    if data.startswith(LFS):
        return f"has a pointer of Git LFS in place of {path.name}; fetch it by `git lfs pull`"
    try:
        found: Any = orjson.loads(data)
    except ValueError:
        return f"has a {path.name} that is not JSON; copy it again"
    tokens = _tokens(found) if path.name == "tokenizer.json" else found
    if not isinstance(tokens, dict) or not tokens:
        return f"has no vocabulary in {path.name}; copy it again from where the tokenizer was made"
    missing = next((names[0] for names in SPECIAL if not any(name in tokens for name in names)), None)
    return (
        None
        if missing is None
        else f"has no {missing} token in {path.name}; give the tokenizer that the model was made with"
    )


def _tokenizer_files(directory: Path) -> list[Path]:
    """Those that the trainer would read, the vocabulary first."""
    whole = directory / "tokenizer.json"
    if whole.is_file():
        return [whole]
    return [path for name in ("vocab.json", "merges.txt") if (path := directory / name).is_file()]


def _tokens(found: Any) -> dict[str, Any] | None:
    """Every token of a tokenizer.json, as keys. Unigram models list pairs."""
    if not isinstance(found, dict):
        return None
    whole = cast(dict[str, Any], found)
    model: Any = whole.get("model")
    vocabulary: Any = cast(dict[str, Any], model).get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        vocabulary = {str(pair[0]): pair for pair in cast(list[Any], vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict) or not vocabulary:
        return None
    added: Any = whole.get("added_tokens")
    names = [one.get("content") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return cast(dict[str, Any], vocabulary) | {str(name): True for name in names}


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{path}:{facts.st_mtime_ns}:{facts.st_size}:{facts.st_ino}"
