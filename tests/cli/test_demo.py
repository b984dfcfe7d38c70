"""`./run demo` past its set-up: what it says, what it leaves, and that ^C, however often, leaves nothing."""

import contextlib
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cli import client
from cli import demo as command
from tests.cli.conftest import DEADLINE_S, Up, environment_of, wait_until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0
"""A demo's ranks import torch, on a machine that may be busy; a cancelling that does not end would take longer."""
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not (ROOT / "web" / "package.json").exists(), reason="a checkout without the dashboard"),
]


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
        wait_until(lambda: re.search(pattern, self.output.read_text()), self.process, self.output, within_s=PATIENCE_S)

    def processes(self) -> list[psutil.Process]:
        return processes(self.data_dir)


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(environment, tmp_path / "demo.out")
    yield demo
    demo.process.kill()
    demo.process.wait()


def test_the_whole_way(demo: Demo) -> None:
    assert demo.process.wait(timeout=PATIENCE_S) == 0, demo.output.read_text()
    said = demo.output.read_text()
    link, weights, after = said.find("/ui/login#"), said.find("model.safetensors"), said.find("`./run up`")
    assert 0 < link < said.find("perplexity after") < weights < after
    assert not demo.processes()


@pytest.mark.parametrize("moment", ["starting the control plane", r"job \S+ submitted", r"\nload|\ntrain|\nevaluate"])
def test_an_interrupt_leaves_no_process_and_no_job_that_would_go_on(
    environment: dict[str, str], tmp_path: Path, moment: str
) -> None:
    # The real trainer: it takes long enough to be interrupted.
    demo = Demo(environment | {"LONGYARD_TRAINER_MODULE": "trainer"}, tmp_path / "demo.out")
    demo.says(moment)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(timeout=PATIENCE_S) == 130, demo.output.read_text()
    assert not demo.processes()
    assert statuses(demo.data_dir) <= {"cancelled"}


def test_many_interrupts_leave_no_more_than_one_does(environment: dict[str, str], tmp_path: Path) -> None:
    demo = Demo(environment | {"LONGYARD_TRAINER_MODULE": "trainer"}, tmp_path / "demo.out")
    demo.says(r"\ntrain")
    signs = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in range(6):
        demo.process.send_signal(signs[number % 3 if number > 3 else 0])
        time.sleep(0.002)
    # And as they are typed by whoever sees nothing happen.
    while demo.process.poll() is None:
        demo.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            demo.process.wait(timeout=0.05)
    assert demo.process.returncode == 130, demo.output.read_text()
    assert not demo.processes()
    assert statuses(demo.data_dir) == {"cancelled"}


def test_a_terminal_that_is_closed_leaves_no_process_and_no_job(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"LONGYARD_TRAINER_MODULE": "trainer", "TERM": "xterm"}
    output = tmp_path / "demo.out"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-P", "-m", "cli.dev", "demo"], environment)
    _read_until(terminal, rb"train +\S+ +\d+/\d+", output)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not processes(Path(environment["LONGYARD_DATA_DIR"]))
    assert statuses(Path(environment["LONGYARD_DATA_DIR"])) == {"cancelled"}


def test_an_interrupt_while_the_request_is_under_way_cancels_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if asked[-1] == "GET /hosts":
            return httpx.Response(200, json={"data": [{"status": "online", "device_type": "cpu", "devices": [0, 1]}]})
        if asked[-1] == "POST /jobs":
            os.kill(os.getpid(), signal.SIGINT)
            return httpx.Response(201, json={"id": "j", "status": "queued"})
        return httpx.Response(200, json={"id": "j", "status": "cancelled"})

    before = {sign: signal.getsignal(sign) for sign in command.INTERRUPTS}
    try:
        for sign in before:
            signal.signal(sign, command._interrupt)
        with pytest.raises(KeyboardInterrupt):
            command._train(httpx.Client(base_url="http://plane", transport=httpx.MockTransport(answer)))
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    assert asked == ["GET /hosts", "POST /jobs", "POST /jobs/j/cancel"]


def test_what_outlives_the_plane_is_ended_with_the_demo(tmp_path: Path) -> None:
    """A program that leaves a deaf orphan with a child of its own behind, in a session of its own, under the demo's subreaper."""
    deaf = "import signal, subprocess, sys; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); signal.alarm(120); "
    orphan = deaf + "subprocess.Popen(['sleep', '1000']); print('ready', flush=True); signal.pause()"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    script = f"""
import ctypes, os, psutil, subprocess, sys
from cli import demo
demo.STOP_S = demo.HURRY_S = 0.5
ctypes.CDLL(None).prctl(demo.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
made = subprocess.Popen([sys.executable, "-c", {parent!r}], stdout=subprocess.PIPE)
assert made.stdout.readline() == b"ready\\n"
made.wait()
print(len(psutil.Process().children(recursive=True)))
demo._end_children()
print(len(psutil.Process().children(recursive=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.stdout == "2\n0\n", done.stderr


def test_a_plane_that_runs_is_used_and_stays(tmp_path: Path, inputs: Path) -> None:
    up = Up(tmp_path / "data", inputs)
    up.environment |= {"LONGYARD_TRAINER_MODULE": "tests.fake_trainer", "LONGYARD_DATA_ROOTS": str(ROOT / "examples")}
    up.start()
    try:
        demo = Demo(up.environment, tmp_path / "demo.out")
        assert demo.process.wait(timeout=PATIENCE_S) == 0, demo.output.read_text()
        assert "runs on" in demo.output.read_text()
        assert up.process.poll() is None
        assert client.answers(up.url)
        assert up.longyard("jobs").stdout.count("succeeded") == 1
    finally:
        up.stop()


def test_a_plane_that_does_not_offer_the_examples_is_told_with_the_way_out(tmp_path: Path, inputs: Path) -> None:
    up = Up(tmp_path / "data", inputs)
    up.start()
    try:
        demo = Demo(up.environment, tmp_path / "demo.out")
        assert demo.process.wait(timeout=PATIENCE_S) == 1
        said = demo.output.read_text()
        assert f"does not have {ROOT / 'examples'} among its data roots: stop it and run `./run demo` again" in said
        assert "422" not in said
        assert up.process.poll() is None
        assert not statuses(up.data_dir)
    finally:
        up.stop()


def test_a_data_directory_that_cannot_be_is_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    demo = Demo(environment | {"LONGYARD_DATA_DIR": "/proc/nope"}, tmp_path / "demo.out")
    assert demo.process.wait(timeout=PATIENCE_S) == 1
    assert demo.output.read_text().endswith("\n/proc/nope cannot be the data directory: No such file or directory\n")
    assert "Traceback" not in demo.output.read_text()


def test_a_plane_that_cannot_start_says_why(environment: dict[str, str], tmp_path: Path) -> None:
    demo = Demo(environment | {"LONGYARD_DEVICES": "toaster:2", "LONGYARD_LEASE_S": "never"}, tmp_path / "demo.out")
    assert demo.process.wait(timeout=PATIENCE_S) == 1
    said = demo.output.read_text()
    assert "LONGYARD_LEASE_S=never" in said
    assert "did not start" in said
    assert not demo.processes()


def processes(data_dir: Path) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            # Ranks are told their directory by --config, the others by the environment.
            told = process.environ().get("LONGYARD_DATA_DIR", ""), *process.cmdline()
            if any(str(data_dir) in word for word in told):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _read_until(terminal: int, pattern: bytes, output: Path) -> None:
    """What a demo shows on its terminal goes to `output`, until the pattern is there."""
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    while not re.search(pattern, shown):
        assert time.monotonic() < deadline, shown.decode("utf-8", "replace")
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536)
            output.write_bytes(shown)


def statuses(data_dir: Path) -> set[str]:
    if not (data_dir / "longyard.db").exists():
        return set()
    with sqlite3.connect(data_dir / "longyard.db") as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone():
            return set()
        found = {status for (status,) in connection.execute("SELECT status FROM jobs")}
    connection.close()
    return found
