"""`./run demo` past its set-up: what it says, what it leaves, and that a ^C leaves nothing."""

import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli import client
from tests.cli.conftest import DEADLINE_S, Up, environment_of, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "web" / "package.json").exists(), reason="a checkout without the dashboard")


@pytest.fixture
def environment(tmp_path: Path, inputs: Path) -> dict[str, str]:
    environment = environment_of(tmp_path / "data", inputs)
    return environment | {"LONGYARD_TRAINER_MODULE": "tests.fake_trainer"}


class Demo:
    """One `./run demo`, and every process that carries its data directory."""

    def __init__(self, environment: dict[str, str], output: Path) -> None:
        self.data_dir, self.output = Path(environment["LONGYARD_DATA_DIR"]), output
        with open(output, "wb") as file:
            argv = [sys.executable, "-P", "-m", "cli.dev", "demo"]
            self.process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file)

    def says(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.output.read_text()), self.process, self.output)

    def processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                # Ranks are told their directory by --config, the others by the environment.
                told = process.environ().get("LONGYARD_DATA_DIR", ""), *process.cmdline()
                if any(str(self.data_dir) in word for word in told):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(environment, tmp_path / "demo.out")
    yield demo
    demo.process.kill()
    demo.process.wait()


def test_the_whole_way(demo: Demo) -> None:
    assert demo.process.wait(timeout=DEADLINE_S) == 0, demo.output.read_text()
    said = demo.output.read_text()
    link, weights, after = said.find("/ui/login#"), said.find("model.safetensors"), said.find("`./run up`")
    assert 0 < link < said.find("perplexity after") < weights < after
    assert not demo.processes()


@pytest.mark.parametrize("moment", ["starting the control plane", r"job \S+ submitted", r"\nload|\ntrain|\nevaluate"])
def test_an_interrupt_leaves_no_process_and_no_job_that_would_go_on(
    environment: dict[str, str], tmp_path: Path, moment: str, eventually: Callable[..., object]
) -> None:
    # The real trainer: it takes long enough to be interrupted.
    demo = Demo(environment | {"LONGYARD_TRAINER_MODULE": "trainer"}, tmp_path / "demo.out")
    demo.says(moment)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(timeout=DEADLINE_S) == 130, demo.output.read_text()
    eventually(lambda: not demo.processes())
    assert statuses(demo.data_dir) <= {"cancelled"}


def test_a_plane_that_runs_is_used_and_stays(tmp_path: Path, inputs: Path) -> None:
    up = Up(tmp_path / "data", inputs)
    up.environment |= {"LONGYARD_TRAINER_MODULE": "tests.fake_trainer", "LONGYARD_DATA_ROOTS": str(ROOT / "examples")}
    up.start()
    try:
        demo = Demo(up.environment, tmp_path / "demo.out")
        assert demo.process.wait(timeout=DEADLINE_S) == 0, demo.output.read_text()
        assert "runs on" in demo.output.read_text()
        assert up.process.poll() is None
        assert client.answers(up.url)
        assert up.longyard("jobs").stdout.count("succeeded") == 1
    finally:
        up.stop()


def test_a_plane_that_cannot_start_says_why(environment: dict[str, str], tmp_path: Path) -> None:
    demo = Demo(environment | {"LONGYARD_DEVICES": "toaster:2", "LONGYARD_LEASE_S": "never"}, tmp_path / "demo.out")
    assert demo.process.wait(timeout=DEADLINE_S) == 1
    said = demo.output.read_text()
    assert "LONGYARD_LEASE_S=never" in said
    assert "did not start" in said
    assert not demo.processes()


def statuses(data_dir: Path) -> set[str]:
    if not (data_dir / "longyard.db").exists():
        return set()
    with sqlite3.connect(data_dir / "longyard.db") as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone():
            return set()
        found = {status for (status,) in connection.execute("SELECT status FROM jobs")}
    connection.close()
    return found
