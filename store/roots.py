"""Data roots: the only directories a spec may name files in. Checked by the API where it sees them, and by the worker before a launch."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from store.errors import PathRefused

MAX_PATH_CHARS: Final = 4096
MAX_ENTRIES: Final = 10_000

Kind = Literal["file", "directory"]


def visible(path: str, *, roots: Sequence[Path]) -> bool:
    """Whether a root that covers the path exists on this machine, so that `resolve` can judge it here."""
    return any(root.is_dir() for root in roots if _under(path, root))


def covered(path: str, *, roots: Sequence[Path]) -> bool:
    """Whether the path, as written, lies under a root; says nothing of what is there."""
    return any(_under(path, root) for root in roots)


def resolve(path: str, *, roots: Sequence[Path], kind: Kind) -> Path:
    """The real path of a readable file or directory under a root, links resolved. Raises PathRefused."""
    if not path or len(path) > MAX_PATH_CHARS or any(ord(char) < 32 for char in path):
        raise PathRefused("not a path", fix=f"give an absolute path of printable characters, at most {MAX_PATH_CHARS}")
    if not path.startswith("/"):
        raise PathRefused("not an absolute path", fix="give the whole path, from /")
    if not covered(path, roots=roots):
        raise PathRefused("outside the data roots", fix=_fix(roots))
    try:
        real = Path(path).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise PathRefused(
            f"there is no such {kind}", fix="check the spelling, and that the worker's hosts see it"
        ) from error
    if not _within(real, roots):
        raise PathRefused("a link leads out of the data roots", fix="put the file itself under a data root")
    if kind == "file" and not stat.S_ISREG(mode):
        raise PathRefused("not a regular file", fix="name a file")
    if kind == "directory" and not stat.S_ISDIR(mode):
        raise PathRefused("not a directory", fix="name the directory that holds the files")
    if kind == "directory":
        _check_entries(real, roots)
    return real


def _check_entries(directory: Path, roots: Sequence[Path]) -> None:
    """What is read in a directory must be a plain file too, and no link out of the roots."""
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                raise PathRefused(f"more than {MAX_ENTRIES} files in it", fix="name a directory of its own")
            if entry.is_symlink() and not _within(Path(entry.path).resolve(), roots):
                raise PathRefused(
                    f"{entry.name} in it is a link out of the data roots", fix="put the file itself there"
                )


def _within(real: Path, roots: Sequence[Path]) -> bool:
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _under(path: str, root: Path) -> bool:
    return ".." not in Path(path).parts and Path(path).is_relative_to(root)


def _fix(roots: Sequence[Path]) -> str:
    named = ", ".join(str(root) for root in roots) or "none is set"
    return f"put it under one of LONGYARD_DATA_ROOTS ({named}), or have the operator add its directory there"
