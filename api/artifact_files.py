"""What an attempt leaves for people to take: its output, its ranks' errors and stacks, its cards' logs. No other path is served."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

MAX_FILES: Final = 1000
MAX_DEPTH: Final = 4
OUTPUT: Final = "output"
PLOG: Final = "plog"
"""What an Ascend card's runtime logged of an attempt that did not end well; of one that did, its supervisor removes it."""

_OF_A_RANK: Final = re.compile(r"r\d+\.((?P<stack>stack)|error\.json)")


@dataclass(frozen=True)
class Artifact:
    """`path` is relative to the job's directory, its parts joined by `/`; `file` is where it lies on this machine."""

    path: str
    attempt: int
    kind: str
    num_bytes: int
    modified_at: datetime
    file: Path


def of_attempt(run_dir: Path, number: int) -> list[Artifact]:
    """By path. Links, and whatever else is no plain file, are left out, and so are files that hold nothing."""
    found = [
        _artifact(entry, f"a{number}/{entry.name}", number, "stack" if match["stack"] else "error")
        for entry in _entries(run_dir)
        if (match := _OF_A_RANK.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
    ]
    for directory in (OUTPUT, PLOG):
        if not (run_dir / directory).is_symlink():
            found += [
                _artifact(entry, f"a{number}/{directory}/{relative}", number, directory)
                for relative, entry in _files(run_dir / directory, depth=MAX_DEPTH)
            ]
    return sorted((one for one in found[:MAX_FILES] if one.num_bytes), key=lambda one: one.path)


def _files(directory: Path, *, depth: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    for entry in _entries(directory):
        if entry.is_file(follow_symlinks=False):
            yield entry.name, entry
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            for relative, below in _files(directory / entry.name, depth=depth - 1):
                yield f"{entry.name}/{relative}", below


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _artifact(entry: os.DirEntry[str], path: str, number: int, kind: str) -> Artifact:
    facts = entry.stat(follow_symlinks=False)
    return Artifact(path, number, kind, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC), Path(entry.path))
