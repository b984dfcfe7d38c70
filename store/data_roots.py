"""Data roots: the only directories a spec may name files in. Checked by the API where it sees them, and by the worker before a launch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from store.errors import PathRefused, PathUnreachable

MAX_PATH_CHARS: Final = 4096
MAX_ENTRIES: Final = 10_000
_WRONG_PATH: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)

Kind = Literal["file", "directory"]


def visible(path: str, *, roots: Sequence[Path]) -> bool:
    """Whether a root that covers the path exists on this machine, so that `resolve` can judge it here."""
    return any(root.is_dir() for root in roots if _under(path, root))


def covered(path: str, *, roots: Sequence[Path]) -> bool:
    """Whether the path, as written, lies under a root; says nothing of what is there."""
    return any(_under(path, root) for root in roots)


def resolve(path: str, *, roots: Sequence[Path], kind: Kind) -> Path:
    """The real path of a readable file or directory under a root, links resolved. Raises PathRefused, or PathUnreachable of its kind."""
    if not path or len(path) > MAX_PATH_CHARS or min(path) < " ":
        raise PathRefused("not a path", fix=f"give an absolute path of printable characters, at most {MAX_PATH_CHARS}")
    if not path.startswith("/"):
        raise PathRefused("not an absolute path", fix="give the whole path, from /")
    if ".." in path.split("/"):
        raise PathRefused("has `..` in it", fix="write the path without")
    if not covered(path, roots=roots):
        raise PathRefused("outside the data roots", fix=_fix(roots))
    try:
        real, mode = _look_up(path)
    except OSError as error:
        if not is_wrong_path(error):
            raise _unreachable(error) from error
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
        try:
            _check_entries(real, roots)
        except OSError as error:
            if not is_wrong_path(error):
                raise _unreachable(error) from error
            raise PathRefused("cannot be read", fix="let the workers' account read it") from error
    return Path(real)


def is_wrong_path(error: OSError) -> bool:
    """Whether the path is at fault, and not what it lies on: a server that is away, a disk that fails."""
    return error.errno in _WRONG_PATH


def _look_up(path: str | Path) -> tuple[str, int]:
    """Where it really is, and its mode: as the kernel finds it, in three calls however deep it lies. Opens nothing. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _check_entries(directory: str, roots: Sequence[Path]) -> None:
    """What is read in a directory must be a plain file too, and no link out of the roots."""
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                raise PathRefused(f"more than {MAX_ENTRIES} files in it", fix="name a directory of its own")
            if entry.is_symlink() and not _within(os.path.realpath(entry.path), roots):
                raise PathRefused(
                    f"{entry.name} in it is a link out of the data roots", fix="put the file itself there"
                )


def _unreachable(error: OSError) -> PathUnreachable:
    return PathUnreachable(
        f"what it lies on does not answer ({error.strerror})", fix="look at that disk or mount, then submit it again"
    )


def _within(real: str, roots: Sequence[Path]) -> bool:
    # Real paths have no links in them: below the root as it is written means that it is none either.
    return any(_is_below(real, os.fspath(root)) or _is_below(real, os.path.realpath(root)) for root in roots)


def _under(path: str, root: Path) -> bool:
    return ".." not in path.split("/") and _is_below(os.path.normpath(path), os.fspath(root))


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _fix(roots: Sequence[Path]) -> str:
    named = ", ".join(str(root) for root in roots) or "none is set"
    return f"put it under one of LONGYARD_DATA_ROOTS ({named}), or have the operator add its directory there"
