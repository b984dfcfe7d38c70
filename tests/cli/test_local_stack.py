"""`longyard up` as a program: what it starts, restarts, stops, and leaves alone."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli import client
from tests.cli.conftest import Longyard, Up, environment_of

GONE_S = 10.0


@pytest.fixture
def up(tmp_path: Path, inputs: Path) -> Iterator[Up]:
    up = Up(tmp_path / "data", inputs)
    up.start()
    try:
        yield up
    finally:
        up.stop()


def everything(up: Up) -> list[psutil.Process]:
    root = psutil.Process(up.process.pid)
    return [root, *root.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_it_tells_where_it_is_and_stops_without_a_trace(up: Up, eventually: Callable[..., object]) -> None:
    said = up.output.read_text()
    assert re.search(r"Dashboard +http://127\.0\.0\.1:\d+/ui/login#\S+", said)
    assert str(up.data_dir / "token") in said
    assert (up.data_dir / "token").stat().st_mode & 0o777 == 0o600
    eventually(lambda: "online" in up.longyard("hosts").stdout)
    assert "draining" in up.longyard("drain", "here").stdout
    assert "free, cordoned" in up.longyard("cordon", "here", "0", "1").stdout
    uncordoned = up.longyard("uncordon", "here", "0", "1").stdout
    assert "cordoned" not in uncordoned
    assert "last seen" in uncordoned
    assert "online" in up.longyard("undrain", "here").stdout
    assert up.longyard("drain", "elsewhere").returncode == 2
    processes = everything(up)
    assert len(processes) >= 4
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=30) == 0
    eventually(lambda: gone(processes), within_s=GONE_S)
    assert up.url == ""


def test_a_second_one_says_so_and_gives_a_fresh_link(up: Up) -> None:
    first = re.findall(r"/ui/login#(\S+)", up.output.read_text())
    second = up.longyard("up")
    assert second.returncode == 0, second.stderr
    assert "is running already" in second.stdout
    fresh = re.findall(r"/ui/login#(\S+)", second.stdout)
    assert fresh
    assert fresh != first
    assert up.process.poll() is None


def test_a_killed_up_takes_everything_with_it_and_the_next_one_starts(
    up: Up, eventually: Callable[..., object]
) -> None:
    processes = everything(up)
    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait()
    eventually(lambda: gone(processes), within_s=GONE_S)
    up.start()
    assert up.longyard("jobs").returncode == 0


@pytest.mark.parametrize("room", ["api", "worker"])
def test_a_part_that_dies_comes_back(up: Up, room: str, eventually: Callable[..., object]) -> None:
    url = up.url
    child = eventually(lambda: up.child(room))
    assert isinstance(child, psutil.Process)
    child.kill()
    eventually(lambda: (new := up.child(room)) is not None and new.pid != child.pid)
    eventually(lambda: client.answers(url))
    assert f"{room} was killed by SIGKILL; starting it again" in up.output.read_text()
    assert up.url == url


def test_the_broker_comes_back(up: Up, eventually: Callable[..., object]) -> None:
    lock = up.data_dir / "valkey.lock"
    brokers = [one for one in everything(up)[1:] if str(lock) in [file.path for file in one.open_files()]]
    assert len(brokers) == 1
    brokers[0].kill()
    eventually(lambda: "valkey was killed by SIGKILL" in up.output.read_text())
    eventually(
        lambda: [
            one
            for one in psutil.Process(up.process.pid).children()
            if one.pid != brokers[0].pid and str(lock) in [file.path for file in one.open_files()]
        ]
    )


def test_a_port_that_is_taken(tmp_path: Path, inputs: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = environment_of(tmp_path / "data", inputs)
        done = Longyard(environment, inputs)("up", "--port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_is_the_reason_that_is_given(tmp_path: Path, inputs: Path) -> None:
    longyard = Longyard(environment_of(tmp_path / "data", inputs), inputs)
    for devices in ("cpu:0", "toaster:2"):
        done = longyard("up", environment={"LONGYARD_DEVICES": devices})
        assert done.returncode == 1
        assert done.stderr.startswith(f"longyard: LONGYARD_DEVICES={devices}: ")
        assert "migrations ended with exit code 1, so nothing was started" in done.stderr
        assert done.stderr.count("LONGYARD_DEVICES") == 1  # the first refusal is in the same log


def test_a_worker_that_does_not_know_its_cards_says_so_where_it_was_started(
    tmp_path: Path, inputs: Path, eventually: Callable[..., object]
) -> None:
    up = Up(tmp_path / "data", inputs)
    up.environment |= {"LONGYARD_DEVICES": "npu-sim:2"}
    state = up.data_dir / "hosts" / "here" / "npu-sim.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"fault": "garbage"}')
    try:
        up.start()
        eventually(lambda: "this host's cards are not known: npu-smi answered what" in up.output.read_text())
        state.unlink()
        eventually(lambda: "npu (simulated)" in up.longyard("hosts").stdout)
    finally:
        up.stop()


def test_the_doctor_tells_what_is_wrong_here(tmp_path: Path, inputs: Path) -> None:
    up = Up(tmp_path / "data", inputs)
    up.environment |= {"LONGYARD_DATA_ROOTS": str(tmp_path / "missing")}
    done = up.longyard("doctor", "--json")
    assert done.returncode == 1
    (one,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "failure"]
    assert (one["check"], one["what"]) == ("data roots", f"{tmp_path / 'missing'} does not exist on this host")
    assert f"fix  {one['fix']}" in up.longyard("doctor").stdout
    up.environment |= {"LONGYARD_DATA_ROOTS": str(inputs)}
    assert up.longyard("doctor").returncode == 0
