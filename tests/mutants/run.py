"""Runs mutants: a copy of the code each, its fault put in, the tests that must notice it run on SQLite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.mutant import Edit, Mutant

ROOT: Final = Path(__file__).parents[2]
ROOMS: Final = ("store", "worker", "api", "trainer", "migrations", "tests")
LIMIT_S: Final = 900


@dataclass(frozen=True)
class Outcome:
    """`caught_by` is the test that failed, or what else ended the run; None: the mutant survived."""

    mutant: Mutant
    caught_by: str | None
    output: str


def check(mutants: Iterable[Mutant]) -> None:
    """That each can still be made. Raises Rotten."""
    with tempfile.TemporaryDirectory(prefix="longyard-mutants-") as directory:
        for number, mutant in enumerate(mutants):
            _make(Path(directory) / str(number), mutant.edits)


def run(mutants: Sequence[Mutant], *, num_jobs: int, seed: int = 0) -> Iterator[Outcome]:
    """In the order given, as they are done."""
    with ThreadPoolExecutor(num_jobs) as pool:
        yield from pool.map(lambda mutant: _run(mutant, seed), mutants)


def unmutated(mutants: Iterable[Mutant], *, seed: int = 0) -> Outcome:
    """All their tests on the code as it is."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    return _run(Mutant("none", "the code as it is", (), tuple(tests)), seed)


def _run(mutant: Mutant, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="longyard-mutant-") as directory:
        root = Path(directory)
        _make(root, mutant.edits)
        argv = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-k", "not postgres", f"--hypothesis-seed={seed}"]
        argv += [
            "-p",
            "tests.mutants.profile",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(root / "tmp"),
            *mutant.tests,
        ]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LONGYARD_", "PYTEST_"))
        }
        environment |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                argv, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(mutant, f"no end within {LIMIT_S} s", "")
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return Outcome(mutant, None, output)
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S+/)?(\S+)", output, re.MULTILINE)
    return Outcome(
        mutant, failed[1] if failed and done.returncode == 1 else f"pytest's exit code {done.returncode}", output
    )


def _make(root: Path, edits: Iterable[Edit]) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", root / "pyproject.toml")
    for edit in edits:
        edit.apply(root)
