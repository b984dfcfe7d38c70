"""A real API process, and `longyard` run as a program against it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cli import client

DEADLINE_S = 60.0


@dataclass
class Longyard:
    """`longyard` as a user has it: a program, its environment, what it printed."""

    environment: dict[str, str]
    inputs: Path

    def __call__(self, *argv: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "cli", *argv],
            env={**self.environment, **(environment or {})},
            cwd=self.inputs,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def submit(self, *argv: str) -> str:
        done = self("submit", "--preset", "demo", *self.files, "--json", *argv)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["id"]

    @property
    def token_file(self) -> Path:
        return Path(self.environment["LONGYARD_DATA_DIR"]) / "token"

    @property
    def files(self) -> list[str]:
        """Relative to the inputs, where the program runs."""
        named = {"train_file": "train.txt", "validation_file": "test.txt", "tokenizer_name": "lf_token"}
        return [part for name, path in named.items() for part in ("-s", f"{name}={path}")]


class Up:
    """One `longyard up` on a directory of its own."""

    def __init__(self, data_dir: Path, inputs: Path) -> None:
        data_dir.mkdir()
        self.data_dir = data_dir
        self.environment = environment_of(data_dir, inputs)
        self.longyard = Longyard(self.environment, inputs)
        self.output = data_dir.parent / "up.out"

    def start(self) -> None:
        with open(self.output, "wb") as output:
            argv = [sys.executable, "-P", "-m", "cli", "up"]
            self.process = subprocess.Popen(argv, env=self.environment, stdout=output, stderr=output)
        wait_until(lambda: b"^C stops it" in self.output.read_bytes(), self.process, self.output)

    def child(self, module: str) -> psutil.Process | None:
        """The live child that runs this room."""
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it may end while it is looked at
                if module in child.cmdline():
                    return child
        return None

    @property
    def url(self) -> str:
        return client.read_text(self.data_dir / "url") or ""

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=DEADLINE_S)
            finally:
                self.process.kill()


def environment_of(data_dir: Path, inputs: Path) -> dict[str, str]:
    """Nothing of the person's own plane who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    return kept | {
        "LONGYARD_DATA_DIR": str(data_dir),
        "LONGYARD_DATA_ROOTS": str(inputs),
        "LONGYARD_PORT": "0",
        "LONGYARD_HOST_NAME": "here",
        "LONGYARD_DEVICES": "cpu:2",
        "LONGYARD_HOST_LOOP_S": "0.25",
        "LONGYARD_STOP_GRACE_S": "5",
    }


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text, and the tokenizer's files as far as the API looks at them."""
    directory = tmp_path_factory.mktemp("inputs")
    for name in ("train.txt", "test.txt"):
        (directory / name).write_text("It was a bright cold day in April.\n" * 200)
    tokenizer = directory / "lf_token"
    tokenizer.mkdir()
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(chr(code) for code in range(33, 127)), "Ġ"]
    (tokenizer / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "longformer", "vocab_size": len(words)}))
    return directory


@pytest.fixture(scope="module")
def longyard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, inputs: Path) -> Iterator[Longyard]:
    """`longyard` and an API without worker or broker: what is submitted stays queued."""
    data_dir = tmp_path_factory.mktemp("plane")
    shutil.copyfile(sqlite_template, data_dir / "longyard.db")
    environment = environment_of(data_dir, inputs)
    log = data_dir / "api.log"
    with open(log, "wb") as output:
        api = subprocess.Popen([sys.executable, "-P", "-m", "api"], env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: client.answers(client.read_text(data_dir / "url") or ""), api, log)
        yield Longyard(environment, inputs)
    finally:
        api.send_signal(signal.SIGTERM)
        api.wait(timeout=DEADLINE_S)


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path, *, within_s: float = DEADLINE_S
) -> None:
    """Until it holds; a process that ends first fails the test with what it said."""
    for _ in range(int(within_s / 0.05)):
        if condition():
            return
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"it ended with {process.returncode}:\n{log.read_text()}")
    pytest.fail(f"not within {within_s} s:\n{log.read_text()}")
