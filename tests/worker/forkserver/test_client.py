"""A host whose launcher cannot start, or does not answer: whoever waits for a supervisor there is told so, and nobody waits for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import attempts
from store.states import AttemptStatus, ExitReason, JobStatus
from worker import journal

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

BREAK = """
import os, sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "worker.forkserver.warmup" and os.path.exists({flag!r}):
            raise ImportError("the disk that holds it is gone")

if "worker.forkserver.server" in sys.orig_argv:
    sys.meta_path.insert(0, Broken())
"""


@pytest.fixture
def broken(plane: Plane, tmp_path: Path) -> Iterator[Path]:
    """A host whose launchers fail at an import for as long as the file that this answers is there."""
    flag, shadow = tmp_path / "broken", tmp_path / "shadow"
    flag.touch()
    shadow.mkdir()
    (shadow / "sitecustomize.py").write_text(BREAK.format(flag=str(flag)))
    path = os.pathsep.join([str(shadow), os.environ.get("PYTHONPATH", "")])
    plane.start(PYTHONPATH=path, LONGYARD_RETRY_S="1")
    yield flag
    plane.end_jobs()


def test_what_waits_for_a_broken_launcher_is_closed_with_its_last_words(plane: Plane, broken: Path) -> None:
    job_id = plane.submit([{"do": "succeed"}])
    plane.eventually(lambda: "attempt_closed" in plane.kinds(job_id))
    with plane.database.read() as session:
        first = attempts.numbered(session, job_id, 1)
    assert first is not None
    assert (first.status, first.exit_reason) == (AttemptStatus.FAILED, ExitReason.LAUNCH_ERROR)
    assert first.message == "host testhost cannot start supervisors: ImportError: the disk that holds it is gone"
    # Mended, the host takes up work by itself.
    broken.unlink()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    plane.assert_clean(job_id)


def test_launchers_that_fail_are_started_ever_more_slowly(plane: Plane, broken: Path) -> None:
    def ends() -> list[datetime]:
        lines = (plane.settings.data_dir / "worker.log").read_text().splitlines()
        return [datetime.fromisoformat(json.loads(line)["at"]) for line in lines if "the launcher has ended" in line]

    plane.eventually(lambda: len(ends()) >= 4, within_s=90)
    times = ends()
    pauses_s = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert all(pause_s >= 0.25 * 2**number for number, pause_s in enumerate(pauses_s[:3]))


def test_a_cancel_does_not_wait_for_a_launcher(plane: Plane, broken: Path) -> None:
    """Closed as cancelled, whether before the verdict on the launcher or after it."""
    job_id = plane.submit([{"do": "succeed"}])
    plane.eventually(lambda: plane.job(job_id).num_attempts > 0)
    plane.cancel(job_id)
    assert plane.until_ended(job_id).status is JobStatus.CANCELLED
    assert plane.job(job_id).num_attempts == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", None),
        ("\n\n", None),
        ("Traceback\n  File x\nImportError: gone\n\n", "ImportError: gone"),
        ('{"level": "error", "message": "no", "error": "Traceback\\n  x\\nOSError: full"}\n', "OSError: full"),
        ('{"level": "warning", "message": "slow"}\n', "slow"),
        ("[1]\n", "[1]"),
        ("a\0b\n", "a\ufffdb"),
        ('{"message": "a\\u0000b"}\n', "a\ufffdb"),
        ("x" * 100_000 + "\nend", "end"),
    ],
)
def test_the_last_words_of_a_log(tmp_path: Path, text: str, words: str | None) -> None:
    (tmp_path / "log").write_text(text)
    assert journal.last_words(tmp_path / "log") == words
    assert journal.last_words(tmp_path / "none") is None
