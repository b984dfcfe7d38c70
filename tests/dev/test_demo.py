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
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from cli import client
from dev import demo as command
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

    def __init__(self, environment: dict[str, str], output: Path, *, before: Sequence[str] = ()) -> None:
        self.data_dir, self.output = Path(environment["LONGYARD_DATA_DIR"]), output
        with open(output, "wb") as file:
            argv = [*before, sys.executable, "-P", "-m", "dev.__main__", "demo"]
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
        os.execve(sys.executable, [sys.executable, "-P", "-m", "dev.__main__", "demo"], environment)
    _read_until(terminal, rb"train +\S+ +\d+/\d+", output)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not processes(Path(environment["LONGYARD_DATA_DIR"]))
    assert statuses(Path(environment["LONGYARD_DATA_DIR"])) == {"cancelled"}


@pytest.fixture
def interrupts() -> Iterator[command.Interrupts]:
    """Not listening yet; whatever it takes over is given back."""
    before = {sign: signal.getsignal(sign) for sign in command.INTERRUPTS}
    interrupts = command.Interrupts()
    yield interrupts
    interrupts.taken = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    for sign, handler in before.items():
        signal.signal(sign, handler)


JOB = {"id": "j", "status": "queued", "cursor": 0, "progress": None, "status_reason": None}
END = "event: end\ndata: {}\n\n"


class Script:
    """A plane that answers each request by the next answer the test has for it, and by the last one from there on."""

    def __init__(self, answers: dict[str, list[object]]) -> None:
        host = {"status": "online", "device_type": "cpu", "devices": [0, 1]}
        self.answers = {"GET /hosts": [{"data": [host]}]} | answers
        self.asked: list[str] = []
        self.keys: set[str | None] = set()

    def connect(self) -> httpx.Client:
        return httpx.Client(base_url="http://plane", transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        name = f"{request.method} {request.url.path}"
        self.asked.append(name)
        if name == "POST /jobs":
            self.keys.add(request.headers.get("Idempotency-Key"))
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, signal.Signals):
            signal.raise_signal(answer)
            pytest.fail("it was not heard")
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, json={"status": answer, "detail": "not now"})
        return httpx.Response(200, text=answer) if isinstance(answer, str) else httpx.Response(200, json=answer)


def test_an_interrupt_while_the_request_is_under_way_cancels_its_job(interrupts: command.Interrupts) -> None:
    script = Script({"POST /jobs": [signal.SIGINT, JOB], "POST /jobs/j/cancel": [JOB | {"status": "cancelled"}]})
    interrupts.listen()
    with pytest.raises(KeyboardInterrupt):
        command._train(script.connect, interrupts)
    assert script.asked == ["GET /hosts", "POST /jobs", "POST /jobs", "POST /jobs/j/cancel"]
    assert len(script.keys) == 1


@pytest.mark.parametrize(
    ("following", "raised"),
    [
        ({"GET /jobs/j/stream": [500]}, client.Problem),
        ({"GET /jobs/j/stream": [END], "GET /jobs/j": [503]}, client.Problem),
        ({"GET /jobs/j/stream": [END], "GET /jobs/j": [httpx.ReadTimeout("slow")]}, client.Unreachable),
    ],
)
def test_a_plane_that_fails_while_the_job_runs_is_asked_until_it_is_cancelled(
    interrupts: command.Interrupts, following: dict[str, list[object]], raised: type[Exception]
) -> None:
    cancelling = [503, httpx.ReadTimeout("slow"), JOB | {"status": "cancelling"}]
    script = Script({"POST /jobs": [JOB], "POST /jobs/j/cancel": cancelling} | following)
    script.answers["GET /jobs/j"] = [*following.get("GET /jobs/j", []), 503, JOB, JOB | {"status": "cancelled"}]
    with pytest.raises(raised) as error:
        command._train(script.connect, interrupts)
    assert "goes on" not in str(error.value)
    assert script.asked[-6:] == ["POST /jobs/j/cancel"] * 3 + ["GET /jobs/j"] * 3


def test_a_job_that_is_over_already_needs_no_cancelling(interrupts: command.Interrupts) -> None:
    answers: dict[str, list[object]] = {"GET /jobs/j/stream": [END], "GET /jobs/j": [503], "POST /jobs/j/cancel": [409]}
    script = Script({"POST /jobs": [JOB]} | answers)
    with pytest.raises(client.Problem):
        command._train(script.connect, interrupts)
    assert script.asked[-2:] == ["GET /jobs/j", "POST /jobs/j/cancel"]


def test_a_job_that_cannot_be_cancelled_is_told(
    interrupts: command.Interrupts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "CANCEL_S", 0.5)
    script = Script({"POST /jobs": [JOB], "GET /jobs/j/stream": [500], "POST /jobs/j/cancel": [503]})
    with pytest.raises(client.Problem):
        command._train(script.connect, interrupts)
    assert "job j could not be cancelled" in capsys.readouterr().err


def test_a_submit_without_an_answer_is_repeated_as_the_same(interrupts: command.Interrupts) -> None:
    done = JOB | {"status": "succeeded"}
    script = Script({"POST /jobs": [httpx.ReadTimeout("slow"), done], "GET /jobs/j": [done]})
    assert command._train(script.connect, interrupts)["status"] == "succeeded"
    assert script.asked == ["GET /hosts", "POST /jobs", "POST /jobs", "GET /jobs/j"]
    assert len(script.keys) == 1


def test_an_interrupt_that_was_swallowed_is_raised_again(
    interrupts: command.Interrupts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "REMIND_S", 0.05)
    interrupts.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.sigtimedwait([], DEADLINE_S)
    interrupts.taken = True
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("grace", "stop_s"), [(None, 120.0), ("5", 120.0), ("600", 650.0), ("soon", 120.0), ("inf", 120.0)]
)
def test_the_plane_has_as_long_to_stop_as_its_workers_have(grace: str | None, stop_s: float) -> None:
    assert command._stop_s({} if grace is None else {"LONGYARD_STOP_GRACE_S": grace}) == stop_s


def test_under_nohup_it_outlasts_the_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    demo = Demo(environment, tmp_path / "demo.out", before=["nohup"])
    demo.says("starting the control plane")
    demo.process.send_signal(signal.SIGHUP)
    assert demo.process.wait(timeout=PATIENCE_S) == 0, demo.output.read_text()
    assert not demo.processes()


def test_what_a_shell_ran_before_it_became_the_demo_stays(environment: dict[str, str], tmp_path: Path) -> None:
    # One that has a child, as a plane has.
    shell = 'sh -c \'sleep 1000; :\' & echo its $!; exec "$0" "$@"'
    demo = Demo(environment | {"LONGYARD_LEASE_S": "never"}, tmp_path / "demo.out", before=["sh", "-c", shell])
    demo.says("its [0-9]+")
    found = re.search("its ([0-9]+)", demo.output.read_text())
    assert found
    theirs = psutil.Process(int(found[1]))
    try:
        assert demo.process.wait(timeout=PATIENCE_S) == 1, demo.output.read_text()
        left = [theirs, *theirs.children()]
        assert len(left) == 2
        assert set(demo.processes()) == set(left)
    finally:
        for process in [*theirs.children(), theirs]:
            process.kill()


def test_what_outlives_the_plane_is_ended_with_the_demo(tmp_path: Path) -> None:
    """A program that leaves a deaf orphan with a child of its own behind, in a session of its own, under the demo's subreaper."""
    deaf = "import signal, subprocess, sys; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); signal.alarm(120); "
    orphan = deaf + "subprocess.Popen(['sleep', '1000']); print('ready', flush=True); signal.pause()"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    script = f"""
import ctypes, os, psutil, subprocess, sys
from dev import demo
demo.HURRY_S = 0.5
ctypes.CDLL(None).prctl(demo.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
made = subprocess.Popen([sys.executable, "-c", {parent!r}], stdout=subprocess.PIPE)
assert made.stdout.readline() == b"ready\\n"
made.wait()
print(len(psutil.Process().children(recursive=True)))
demo._end_children(frozenset(), stop_s=0.5)
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
        assert (
            f"does not take the files in {ROOT / 'examples'} (outside the data roots): stop it and run `./run demo` again"
            in said
        )
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
