"""Owns the files that the Ascend runtime logs of one attempt: their last words, and their end where nobody needs them.

Below `<run>/plog`: `debug|run/plog/plog-{pid}_{time}.log` and `debug|run/device-{id}/device-{pid}_{time}.log`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from worker.ingest.tail import size

DIR: Final = "plog"
"""Below the run directory; what is in it is an artifact of an attempt that did not end well."""

LOOK_BACK_BYTES: Final = 64 * 1024
MAX_FILES: Final = 64


def errors(run_dir: Path, pid: int | None = None) -> str:
    """The lines that say ERROR at the end of each file, of one process or of all; '' where there are none."""
    pattern = "*.log" if pid is None else f"*-{pid}_*.log"
    lines: list[str] = []
    for path in sorted((run_dir / DIR).rglob(pattern))[:MAX_FILES]:
        lines += [line for line in _end(path).splitlines() if "ERROR" in line]
    return "\n".join(lines)


def discard(run_dir: Path) -> None:
    """An attempt that ended well leaves none: they are large, and there is nothing to find."""
    shutil.rmtree(run_dir / DIR, ignore_errors=True)


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, size(path) - LOOK_BACK_BYTES))
            return file.read(LOOK_BACK_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
