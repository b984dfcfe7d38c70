"""Owns what `./run test`, `lint`, `bench`, `faults`, `mutants` and `simulate` run, and in which order."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cli import console
from dev import web_build
from dev.bootstrap import ROOT, VENV

FOR_TESTS = ("LONGYARD_CHROMIUM", "LONGYARD_SCREENSHOTS")


def test(argv: Sequence[str]) -> int:
    """`test`: everything but the browser; `test web`, `test browser`; anything else goes to pytest as it is."""
    if argv[:1] == ["web"]:
        # The wire's types are committed: whoever changes the API makes them anew, and this says where somebody forgot.
        drift = ["git", "diff", "--exit-code", "src/api/schema.d.ts"]
        commands = [["npm", "run", "types"], drift, ["npm", "run", "lint"], ["npm", "run", "test"]]
        return _all(commands, cwd=web_build.install())
    web_build.build()
    if argv[:1] == ["browser"]:
        return _pytest(["-m", "browser", *(argv[1:] or ["tests/e2e"])])
    if argv:
        return _pytest(argv)
    return _pytest(["-m", "not browser", "-n", "auto", "--dist", "loadfile"])


def lint(argv: Sequence[str]) -> int:
    """Every check, to the end, whatever the ones before it said."""
    del argv
    deployment = sorted(str(path) for path in (ROOT / "deploy").glob("Dockerfile*"))
    return _all(
        [
            ["sh", "-n", "run"],
            ["sh", "-n", ".ci/run"],
            ["ruff", "check", "."],
            ["ruff", "format", "--check", "."],
            ["lint-imports"],
            ["pyright"],
            ["docker-compose", "config", "-q"],
            ["hadolint", *deployment],
        ],
        cwd=ROOT,
        # What compose asks of the operator; config -q reads it, nothing is started.
        extra={"LONGYARD_POSTGRES_PASSWORD": "unused", "LONGYARD_REDIS_PASSWORD": "unused"},
    )


def bench(argv: Sequence[str]) -> int:
    """A program of its own: it starts the other rooms and reads their rows, which this one may not."""
    return _run([sys.executable, "-P", "-m", "benchmarks", *argv], cwd=Path.cwd())


def faults(argv: Sequence[str]) -> int:
    """A program among the tests: a plane of its own, broken at random."""
    return _run([sys.executable, "-P", "-m", "tests.faults", *argv], cwd=Path.cwd())


def mutants(argv: Sequence[str]) -> int:
    """A program among the tests too: it runs some of them on copies of the code that each have a fault."""
    return _run([sys.executable, "-P", "-m", "tests.mutants", *argv], cwd=ROOT)


def simulate(argv: Sequence[str]) -> int:
    return _run([sys.executable, "-P", "-m", "benchmarks.simulate", *argv], cwd=Path.cwd())


def is_of_a_plane(name: str) -> bool:
    """What the user set for their own plane; those of the checks have their own directories, brokers and quotas."""
    return name.startswith("LONGYARD_") and not name.startswith("LONGYARD_TEST_") and name not in FOR_TESTS


def _pytest(argv: Sequence[str]) -> int:
    return _run([sys.executable, "-m", "pytest", *argv], cwd=ROOT)


def _all(commands: Sequence[Sequence[str]], *, cwd: Path, extra: dict[str, str] | None = None) -> int:
    failed: list[str] = []
    for command in commands:
        name = " ".join(command[:2])
        console.say(f"── {name}")
        if _run(command, cwd=cwd, extra=extra) != 0:
            failed.append(name)
    console.say(f"failed: {', '.join(failed)}" if failed else f"all {len(commands)} checks passed")
    return 1 if failed else 0


def _run(command: Sequence[str], *, cwd: Path, extra: dict[str, str] | None = None) -> int:
    environment = {name: value for name, value in os.environ.items() if not is_of_a_plane(name)}
    environment |= {**(extra or {}), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "VIRTUAL_ENV": str(VENV)}
    child = subprocess.Popen(
        command, cwd=cwd, env=environment, preexec_fn=partial(console.die_with_parent, os.getpid())
    )
    try:
        return child.wait()
    except BaseException:
        _finish(child)
        raise


def _finish(child: subprocess.Popen[bytes]) -> None:
    """Let it say its closing lines: a ^C on a terminal reached it as well, one sent to us alone did not."""
    for patience_s in (5, 20):
        try:
            child.wait(timeout=patience_s)
            return
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
    child.kill()
