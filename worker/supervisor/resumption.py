"""Owns which checkpoint an attempt goes on from: the newest whose files are those that it was published with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from store.models import Checkpoint

BLOCK_BYTES: Final = 1 << 20


class Interrupted(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Choice:
    """`found` is None where the job starts at its beginning; `corrupt` are newer ones whose files are damaged.

    `missing` is the newest, where its directory is gone: older ones go when newer ones are written, but that one is news.
    """

    found: Checkpoint | None
    corrupt: Sequence[Checkpoint]
    missing: Checkpoint | None


def choose(newest_first: Sequence[Checkpoint], *, is_over: Callable[[], bool]) -> Choice:
    """Reads every byte of the ones it looks at, which can take minutes. Raises Interrupted once `is_over`."""
    corrupt: list[Checkpoint] = []
    missing: Checkpoint | None = None
    for one in newest_first:
        if verifies(Path(one.dir), one.manifest_sha256, is_over=is_over):
            return Choice(one, corrupt, missing)
        if Path(one.dir).exists():
            corrupt.append(one)
        elif one is newest_first[0]:
            missing = one
    return Choice(None, corrupt, missing)


def verifies(directory: Path, manifest_sha256: str, *, is_over: Callable[[], bool]) -> bool:
    """Whether every file is the one that the checkpoint was published with."""
    try:
        manifest = (directory / "manifest.json").read_bytes()
        if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
            return False
        files = cast(dict[str, dict[str, Any]], json.loads(manifest)["files"])
        sizes_fit = all((directory / name).stat().st_size == facts["bytes"] for name, facts in files.items())
        return sizes_fit and all(_sha256(directory / name, is_over) == facts["sha256"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path, is_over: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            if is_over():
                raise Interrupted
            digest.update(block)
    return digest.hexdigest()
