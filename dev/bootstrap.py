"""Owns .venv: makes it, installs the hashed lock, the project and torch, and mends what an interrupted install left behind.

`run` starts it by a bare Python before any package is there, so it imports the standard library and cli.console only. It ends by becoming
`python -m dev.__main__`. Two of them on one checkout take turns; when nothing has changed it costs milliseconds.
"""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli import console
from linux import child

ROOT = child.ROOT
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "longyard.json"
LOG = VENV / "install.log"
LOCKS = {"runtime": ROOT / "requirements.lock", "dev": ROOT / "requirements-dev.lock"}
TORCH = "2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Command:
    """One word after ./run. `level` names the lock it needs; None: it belongs to later work.

    `options` are for who asks before anything is installed; with `has_help`, what is installed then answers in more detail.
    """

    level: str | None
    title: str
    options: tuple[tuple[str, str], ...] = ()
    has_help: bool = True


COMMANDS = {
    "demo": Command(
        "runtime",
        "train a small Longformer end to end: perplexity before and after, speed, weights",
        (
            ("--data-dir DIR", "where the plane keeps its things [.longyard beside this checkout]"),
            ("--port N", "the port of a plane that has to be started [8642, or a free one]"),
        ),
    ),
    "up": Command(
        "runtime",
        "start the control plane on this machine and stay: API, dashboard, broker, one worker",
        (
            ("--data-dir DIR", "database, token, jobs and logs live here [.longyard]"),
            ("--host ADDRESS", "address to listen on [127.0.0.1]"),
            ("--port N", "port to listen on; 0: any free one [8642]"),
            ("--devices WHAT", "what this machine offers: auto, cpu:4, npu:8 [auto]"),
            ("--data-root DIR", "a directory specs may name files in; repeatable"),
        ),
    ),
    "test": Command(
        "dev",
        "run the tests; `test web` and `test browser` run the dashboard's, a path or -k what pytest takes",
        has_help=False,
    ),
    "lint": Command("dev", "ruff, pyright, import-linter, and checks of the deployment files", has_help=False),
    "bench": Command("runtime", "measure what the README's figures come from: `bench plane`, `bench trainer`"),
    "faults": Command("dev", "kill and break every part at random while jobs train: `faults --minutes 30`"),
    "mutants": Command("dev", "put faults into the code and see that the tests notice each: `mutants --only no-fence`"),
    "simulate": Command(
        "dev", "replay a trace of jobs on a made-up fleet, through our planner and first fit: `simulate --help`"
    ),
    "fleet": Command(None, "start many workers on one machine"),
}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        print(f"./run: no command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if command.level is None:
        print(f"./run {argv[0]} is not built yet.", file=sys.stderr)
        return 2
    if any(word in ("-h", "--help") for word in argv[1:]) and not (command.has_help and _is_set_up(command.level)):
        print(command_usage(argv[0]))
        return 0
    # SIGINT too: a script starts background jobs with ^C ignored, and one that is sent to us is meant. Under nohup the terminal may go.
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = [signal.SIGINT, signal.SIGTERM, *([] if is_nohup else [signal.SIGHUP])]
    for sign in heard:
        signal.signal(sign, _raise_interrupt)
    try:
        with _turn():
            ensure(command.level)
    except console.StepError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130
    for sign in heard:
        signal.signal(sign, signal.SIG_DFL)
    # -P: a directory named like one of our rooms where the user stands must not shadow it.
    os.execv(PYTHON, [str(PYTHON), "-P", "-m", "dev.__main__", *argv])


def usage() -> str:
    lines = [f"  {name:<10}{c.title}{'' if c.level else ' (not built yet)'}" for name, c in COMMANDS.items()]
    return "Usage: ./run COMMAND [options]\n\n" + "\n".join(lines)


def command_usage(name: str) -> str:
    """What `./run NAME --help` says where nothing is installed yet."""
    command = COMMANDS[name]
    lines = [f"Usage: ./run {name} [options]", "", f"  {command.title}"]
    if command.options:
        lines += ["", *(f"  {option:<18}{meaning}" for option, meaning in command.options)]
    elif command.has_help:
        lines += ["", "Its options are listed here once .venv is set up, by `./run lint` for one."]
    return "\n".join(lines)


def ensure(level: str) -> None:
    """Bring .venv to what `level` needs. Every part is stamped when it is complete, so a stopped install goes on where it stood.

    Raises StepError, also where .venv is a link: whose it is may be in use, and making it anew would empty it for them.
    """
    if VENV.is_symlink():
        raise console.StepError(
            f"{VENV} is a link to {VENV.resolve()}, which is left as it is; remove the link, and ./run makes its own."
        )
    stamp = _read_stamp()
    wanted = _wanted()
    if stamp.get("base") != wanted["base"]:
        stamp = {"base": wanted["base"]} if _venv_works() else {}
        if not stamp:
            _make_venv()
            stamp = {"base": wanted["base"]}
    locked = (
        "dev" if stamp.get("dev") == wanted["dev"] else "runtime" if stamp.get("runtime") == wanted["runtime"] else None
    )
    if locked is None or (level == "dev" and locked != "dev"):
        # Nothing is stamped while packages change: what dies here is mended by the next run.
        _write_stamp({"base": wanted["base"]})
        heal(_site_packages())
        _install_lock(level)
        stamp = {"base": wanted["base"], level: wanted[level]}
        _write_stamp(stamp)
    if stamp.get("project") != wanted["project"]:
        _pip("installing Longyard itself", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        stamp["project"] = wanted["project"]
        _write_stamp(stamp)
    if stamp.get("torch") != wanted["torch"]:
        heal(_site_packages())
        install_torch()
        stamp["torch"] = wanted["torch"]
        _write_stamp(stamp)


def heal(site_packages: Path) -> list[str]:
    """Forget every package whose files are not all there, so that pip installs it again.

    pip takes a package for installed once its metadata is there; one that was stopped while copying or replacing leaves such a
    package incomplete. Returns the names of what was forgotten.
    """
    broken: list[str] = []
    for info in sorted(site_packages.glob("*.dist-info")):
        if not _is_complete(info):
            shutil.rmtree(info)
            broken.append(info.name.removesuffix(".dist-info"))
    for leftover in site_packages.glob("~*"):  # where pip keeps the old version while it writes the new one
        shutil.rmtree(leftover, ignore_errors=True)
    return broken


def install_torch() -> None:
    """torch apart from the lock: its CPU build carries a local version (`+cpu`) that only some indexes have."""
    cuda = shutil.which("nvidia-smi") is not None
    installed = _installed_torch()
    if installed is not None and installed.partition("+")[0] == TORCH and not (cuda and installed.endswith("+cpu")):
        return
    index = os.environ.get("LONGYARD_TORCH_INDEX", TORCH_INDEX)
    cpu = (["--no-deps", f"torch=={TORCH}+cpu"], ["--no-deps", "--index-url", index, f"torch=={TORCH}+cpu"])
    plain = [f"torch=={TORCH}"]
    if cuda:
        console.say(f"torch {TORCH} with CUDA: about 3 GB to download, once")
        _pip("installing torch", *plain)
        return
    console.say(f"torch {TORCH} for CPU: about 200 MB to download, once")
    for options in cpu:
        try:
            _pip("installing torch", *options, optional=True)
        except console.StepError:
            continue
        return
    console.say("no CPU build of torch in reach; taking the plain one: about 3 GB to download, once")
    _pip("installing torch", *plain)


def _is_set_up(level: str) -> bool:
    stamp = _read_stamp()
    if not stamp:
        return False
    wanted = _wanted()
    locked = "dev" if stamp.get("dev") == wanted["dev"] else level
    return all(stamp.get(part) == wanted[part] for part in ("base", locked, "project", "torch"))


def _wanted() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = {"project": project["project"], "build": project["build-system"], "hatch": project["tool"]["hatch"]}
    return {
        # A moved checkout has the old path in every script; another Python has other wheels.
        "base": f"{ROOT} {'.'.join(map(str, sys.version_info[:2]))}",
        **{level: hashlib.sha256(lock.read_bytes()).hexdigest() for level, lock in LOCKS.items()},
        "project": hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest(),
        "torch": f"{TORCH} {'cuda' if shutil.which('nvidia-smi') else 'cpu'}",
    }


def _read_stamp() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _write_stamp(stamp: dict[str, str]) -> None:
    fresh = STAMP.with_suffix(".tmp")
    fresh.write_text(json.dumps(stamp), "utf-8")
    fresh.replace(STAMP)


def _venv_works() -> bool:
    """Whether .venv is of this Python, at this path, with a pip that starts."""
    if not PYTHON.exists():
        return False
    script = "import pip._internal.cli.main, sys; print(sys.prefix, '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([PYTHON, "-I", "-c", script], capture_output=True, text=True, check=False, env=_environment())
    here = f"{VENV} {'.'.join(map(str, sys.version_info[:2]))}"
    pip = VENV / "bin" / "pip"
    return done.returncode == 0 and done.stdout.strip() == here and pip.exists() and str(VENV) in pip.read_text("utf-8")


def _make_venv() -> None:
    base: str = getattr(sys, "_base_executable", sys.executable)
    console.say(f"making .venv with Python {sys.version.split()[0]}")
    console.run("making .venv", [base, "-I", "-m", "venv", "--clear", str(VENV)], cwd=ROOT, env=_environment())


def _install_lock(level: str) -> None:
    lock = LOCKS[level]
    count = sum(1 for line in lock.read_text("utf-8").splitlines() if line[:1].isalnum())
    _pip(f"installing {count} packages from {lock.name}", "--require-hashes", "--no-deps", "-r", str(lock))


def _pip(title: str, *options: str, optional: bool = False) -> None:
    common = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "3"]
    console.run(
        title, [str(PYTHON), "-I", "-m", "pip", "install", *common, *options], cwd=ROOT, env=_environment(), log=LOG,
        optional=optional, telling=_telling,
    )  # fmt: skip


def _telling(line: str) -> bool:
    return line.startswith(("Collecting", "Downloading", "Installing", "Using cached", "Building"))


def _is_complete(info: Path) -> bool:
    record = info / "RECORD"
    try:
        rows = list(csv.reader(record.read_text("utf-8").splitlines()))
    except (OSError, csv.Error, UnicodeDecodeError):
        return False
    for row in rows:
        path, _, size = row if len(row) == 3 else ("", "", "")
        if not path or path.endswith(".pyc") or not size:
            continue
        try:
            if os.stat(info.parent / path).st_size != int(size):
                return False
        except OSError:
            return False
    return bool(rows)


def _installed_torch() -> str | None:
    script = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([PYTHON, "-I", "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _site_packages() -> Path:
    return VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _environment() -> dict[str, str]:
    """The user's environment, without what would send packages elsewhere."""
    unwanted = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def _raise_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _turn() -> Generator[None]:
    """Hold the checkout's directory itself as the lock: nothing to create, nothing to forget."""
    directory = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say("another ./run is setting up; waiting for it")
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
