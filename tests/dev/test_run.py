"""`run` up to the point where it hands over: which Python it takes, and what it says where none fits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "dirname", "readlink", "id")


class Machine:
    """A checkout at a path with a space, and a PATH that holds only what a test put there."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.checkout = directory / "my checkout"
        self.elsewhere = directory / "elsewhere"
        for made in (self.bin, self.checkout, self.elsewhere):
            made.mkdir()
        shutil.copy(ROOT / "run", self.checkout)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{self.bin}/sh\n{body}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str, status: int) -> None:
        """One that answers the probe like this, and tells what it was then started with."""
        self.program(
            name,
            f'case "$1" in -c) echo {version}; exit {status};; esac\n'
            f'echo "{name}: $*"; echo "home=${{HOME-unset}} data=$LONGYARD_DATA_DIR"',
        )

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "sh"), str(self.checkout / "run"), *argv],
            cwd=self.elsewhere,
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python_names_one_command(machine: Machine) -> None:
    done = machine.run("demo")
    assert done.returncode == 1
    assert "none was found on PATH" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "uv python install 3.11" in done.stderr


def test_too_old_names_its_version_and_a_package_apt_has(machine: Machine) -> None:
    machine.python("python3", "3.9", 3)
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", '[ "$2" = python3.12-venv ]')
    done = machine.run("demo")
    assert done.returncode == 1
    assert "python3 here is 3.9" in done.stderr
    assert "apt-get update && " in done.stderr
    assert "apt-get install python3.12-venv`" in done.stderr


@pytest.mark.parametrize(
    ("here", "command"),
    [
        (None, "apt-get install python3-venv`"),
        (("3.13", 4), "apt-get install python3.13-venv`"),
        (("3.10", 3), "apt-get install python3.11-venv`"),
        (("3.9", 3), "uv python install 3.11`"),
    ],
    ids=["no Python", "no venv", "Ubuntu 22.04", "Debian 11"],
)
def test_apt_without_lists_is_updated_first(machine: Machine, here: tuple[str, int] | None, command: str) -> None:
    if here is not None:
        machine.python("python3", *here)
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", "exit 100")
    done = machine.run("demo")
    assert done.returncode == 1
    assert command in done.stderr
    assert ("apt-get update && " in done.stderr) == ("apt-get install" in command)


def test_apt_that_has_none_is_not_named(machine: Machine) -> None:
    machine.python("python3", "3.9", 3)
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", '[ "$2" = python3-venv ]')
    machine.program("curl", "exit 0")
    done = machine.run("demo")
    assert "`curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv python install 3.11`" in done.stderr
    assert "nor curl" not in done.stderr


def test_without_curl_the_command_takes_wget_or_says_what_it_needs(machine: Machine) -> None:
    assert "(nor curl or wget, one of which the command needs); run `curl" in machine.run("demo").stderr
    machine.program("wget", "exit 0")
    done = machine.run("demo")
    assert "run `wget -qO- https://astral.sh/uv/install.sh | sh && " in done.stderr
    assert "nor curl" not in done.stderr


def test_what_uv_installed_is_found_although_not_on_the_path(machine: Machine) -> None:
    machine.python("python3", "3.9", 3)
    machine.python("python3.12", "3.12", 0)
    theirs = machine.elsewhere / ".local" / "bin"
    theirs.mkdir(parents=True)
    (machine.bin / "python3.12").rename(theirs / "python3.12")
    assert machine.run("demo", HOME=str(machine.elsewhere)).stdout.startswith("python3.12: -I ")


def test_without_venv_names_the_package_of_that_version(machine: Machine) -> None:
    machine.python("python3.13", "3.13", 4)
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", "exit 0")
    done = machine.run("demo")
    assert done.returncode == 1
    assert "Python 3.13 is here, but without its venv" in done.stderr
    assert "apt-get install python3.13-venv`" in done.stderr


def test_a_python_without_venv_is_passed_over(machine: Machine) -> None:
    machine.python("python3.11", "3.11", 4)
    machine.program("python3.12", "exit 127")
    machine.python("python3.14", "3.14", 0)
    assert machine.run("demo").stdout.startswith("python3.14: -I ")


def test_plain_python3_will_do(machine: Machine) -> None:
    machine.python("python3", "3.12", 0)
    assert machine.run("demo").stdout.startswith("python3: -I ")


def test_longyard_python_goes_first(machine: Machine) -> None:
    machine.python("python3.11", "3.11", 0)
    machine.python("mine", "3.12", 0)
    assert machine.run("demo", LONGYARD_PYTHON="mine").stdout.startswith("mine: ")


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("nowhere", "is no Python that starts"),
        ("aged", "is 3.9, and Longyard needs 3.11 to 3.14"),
        ("bare", "is without its venv and ensurepip modules"),
    ],
)
def test_a_longyard_python_that_does_not_fit_is_told(machine: Machine, named: str, why: str) -> None:
    machine.python("python3.11", "3.11", 0)
    machine.python("aged", "3.9", 3)
    machine.python("bare", "3.12", 4)
    done = machine.run("demo", LONGYARD_PYTHON=named)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"LONGYARD_PYTHON={named} {why}; name another, or unset it and ./run looks for one.\n"


def test_longyard_python_never_replaces_an_environment_that_works(machine: Machine) -> None:
    """A plane may run on it."""
    machine.python("other", "3.12", 0)
    machine.python("like", "3.11", 0)
    inside = machine.checkout / ".venv" / "bin"
    inside.mkdir(parents=True)
    machine.python("made", "3.11", 0)
    (machine.bin / "made").rename(inside / "python")
    assert machine.run("demo").stdout.startswith("made: ")
    assert machine.run("demo", LONGYARD_PYTHON="like").stdout.startswith("made: ")
    done = machine.run("demo", LONGYARD_PYTHON="other")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("LONGYARD_PYTHON=other is 3.12, and .venv was made with 3.11; unset it, or stop")
    assert "is no Python that starts" in machine.run("demo", LONGYARD_PYTHON="nowhere").stderr


def test_the_environment_handed_over(machine: Machine) -> None:
    machine.python("python3.11", "3.11", 0)
    empty = machine.run("demo", HOME="")
    assert f"home=unset data={machine.checkout}/.longyard" in empty.stdout
    given = machine.run("demo", HOME="/somewhere", LONGYARD_DATA_DIR="/elsewhere")
    assert "home=/somewhere data=/elsewhere" in given.stdout


def test_through_a_symbolic_link(machine: Machine) -> None:
    machine.python("python3.11", "3.11", 0)
    link = machine.elsewhere / "longyard-run"
    link.symlink_to(machine.checkout / "run")
    done = subprocess.run([link, "demo"], env={"PATH": str(machine.bin)}, capture_output=True, text=True, check=True)
    assert f"data={machine.checkout}/.longyard" in done.stdout


def test_a_real_python_passes_the_probe_and_lists_the_commands(machine: Machine) -> None:
    (machine.bin / "python3.11").symlink_to(os.path.realpath(sys.executable))
    for room in ("linux", "cli", "dev"):
        shutil.copytree(ROOT / room, machine.checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    listed = machine.run("--help")
    assert listed.returncode == 0, listed.stderr
    for name in ("demo", "up", "test", "lint", "bench", "faults", "mutants", "simulate", "fleet"):
        assert f"\n  {name} " in listed.stdout
    later = machine.run("fleet")
    assert (later.returncode, later.stderr) == (2, "./run fleet is not built yet.\n")
    for name, option in (
        ("demo", "--port"),
        ("up", "--devices"),
        ("test", "`test browser`"),
        ("simulate", "is set up"),
    ):
        told = machine.run(name, "--help")
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.startswith(f"Usage: ./run {name} [options]\n")
        assert option in told.stdout
    unknown = machine.run("dmeo")
    assert unknown.returncode == 2
    assert "no command 'dmeo'" in unknown.stderr
    assert not (machine.checkout / ".venv").exists()
