import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli import console
from dev import bootstrap


def package(site: Path, name: str, *, record: str | None) -> Path:
    (site / name).mkdir()
    (site / name / "__init__.py").write_text("x = 1\n")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: x\n")
    if record is not None:
        (info / "RECORD").write_text(record)
    return info


def test_heal_keeps_what_is_whole(tmp_path: Path) -> None:
    rows = "whole/__init__.py,sha256=x,6\nwhole/__pycache__/__init__.cpython-311.pyc,,\nwhole-1.0.dist-info/RECORD,,\n"
    info = package(tmp_path, "whole", record=rows)
    assert bootstrap.heal(tmp_path) == []
    assert info.exists()


@pytest.mark.parametrize(
    "record",
    [None, "", "torn/__init__.py,sha256=x,7\n", "torn/__init__.py,sha256=x,6\ntorn/missing.py,sha256=x,1\n"],
    ids=["not recorded", "record empty", "file cut short", "file missing"],
)
def test_heal_forgets_what_an_interrupted_install_left(tmp_path: Path, record: str | None) -> None:
    info = package(tmp_path, "torn", record=record)
    (tmp_path / "~orn").mkdir()
    assert bootstrap.heal(tmp_path) == ["torn-1.0"]
    assert not info.exists()
    assert not (tmp_path / "~orn").exists()


def test_the_environment_sends_packages_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/tmp/x")
    monkeypatch.setenv("PYTHONPATH", "/tmp/y")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/simple")
    environment = bootstrap._environment()
    assert "PIP_TARGET" not in environment
    assert "PYTHONPATH" not in environment
    assert environment["PIP_INDEX_URL"] == "https://example.org/simple"


def test_the_options_told_before_an_install_are_those_there_are() -> None:
    def named(text: str) -> set[str]:
        return set(re.findall(r"--[a-z-]+", text)) - {"--help"}

    script = "import sys; from dev import __main__ as run; sys.exit(run.main(sys.argv[1:]))"
    demo = subprocess.run([sys.executable, "-c", script, "demo", "--help"], capture_output=True, text=True, check=True)
    assert named(demo.stdout) == named(bootstrap.command_usage("demo"))
    up = subprocess.run(
        [sys.executable, "-c", "from cli import commands; commands.entry('./run')", "up", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert named(up.stdout) == named(bootstrap.command_usage("up"))
    assert "Usage: ./run up [OPTIONS]" in up.stdout


def test_both_locks_pin_what_the_project_is_installed_with() -> None:
    for lock in bootstrap.LOCKS.values():
        assert "\nhatchling==" in lock.read_text("utf-8"), lock


def test_an_environment_that_is_a_link_to_somebody_elses_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "mine" / ".venv"
    (theirs / "bin").mkdir(parents=True)
    (theirs / "bin" / "tool").write_text("in use")
    link.parent.mkdir()
    link.symlink_to(theirs)
    monkeypatch.setattr(bootstrap, "VENV", link)
    monkeypatch.setattr(bootstrap, "PYTHON", link / "bin" / "python")
    monkeypatch.setattr(bootstrap, "STAMP", link / "longyard.json")
    with pytest.raises(console.StepError, match="is a link to"):
        bootstrap.ensure("runtime")
    assert [path.name for path in theirs.rglob("*")] == ["bin", "tool"]
    assert (theirs / "bin" / "tool").read_text() == "in use"
