"""What the checks are started with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev import checks

THEIRS = {"LONGYARD_QUOTAS": "admin=0", "LONGYARD_REDIS_URL": "redis://127.0.0.1:9/0", "LONGYARD_TEST_PG_URL": "kept"}


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but THEIRS, whatever the person who runs the tests has set."""
    for name in [name for name in os.environ if name.startswith("LONGYARD_")]:
        monkeypatch.delenv(name)
    for name, value in THEIRS.items():
        monkeypatch.setenv(name, value)


def test_the_users_plane_is_not_for_the_checks(tmp_path: Path) -> None:
    script = (
        "import os; print(sorted(name for name in os.environ if name.startswith('LONGYARD_')), file=open('seen', 'w'))"
    )
    argv = [sys.executable, "-c", script]
    assert checks._run(argv, cwd=tmp_path, extra={"LONGYARD_POSTGRES_PASSWORD": "unused"}) == 0
    assert (tmp_path / "seen").read_text() == "['LONGYARD_POSTGRES_PASSWORD', 'LONGYARD_TEST_PG_URL']\n"


def test_nor_for_tests_that_are_started_by_hand() -> None:
    script = "import os, tests.conftest; print(sorted(name for name in os.environ if name.startswith('LONGYARD_')))"
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert seen.stdout == "['LONGYARD_TEST_PG_URL']\n"
