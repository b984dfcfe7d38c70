"""`python -m api` as a process of its own: starting, refusing to start, stopping, and being killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from migrations.upgrade import upgrade
from store import jobs
from store.db import Database
from tests.api.sse import messages

Wait = Callable[..., object]


TOKENIZER = '{"model": {"vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}}}'


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def launch(data_dir: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def launch(**settings: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
        environment |= {"LONGYARD_DATA_DIR": str(data_dir), "LONGYARD_PORT": "0", "LONGYARD_SHUTDOWN_GRACE_S": "2"}
        environment |= {f"LONGYARD_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def up(data_dir: Path, process: subprocess.Popen[bytes], eventually: Wait) -> httpx.Client:
    eventually(lambda: (data_dir / "url").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1].decode()
    token = (data_dir / "token").read_text().strip()
    url = (data_dir / "url").read_text().strip()
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=10)


def test_it_tells_where_it_listens_and_leaves_with_success(
    data_dir: Path, launch: Callable[..., subprocess.Popen[bytes]], eventually: Wait
) -> None:
    upgrade(f"sqlite:///{data_dir / 'longyard.db'}")
    process = launch()
    with up(data_dir, process, eventually) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ok"}
        assert stat.S_IMODE((data_dir / "token").stat().st_mode) == 0o600
        with client.stream("GET", "/stream") as response:
            got = messages(response)
            assert next(got).kind == "reset"
            asked_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert list(got) == []
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - asked_at < 5
    assert not (data_dir / "url").exists()
    lines = [json.loads(line) for line in process.communicate()[1].decode().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert {(line["path"], line["status"], line["owner"]) for line in requests} == {
        ("/readyz", 200, "admin"),
        ("/stream", 200, "admin"),
    }
    assert (data_dir / "token").read_text().strip() not in json.dumps(lines)


def test_it_refuses_a_database_without_this_schema(
    data_dir: Path, launch: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = launch()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "python -m migrations" in stderr.decode()
    assert not (data_dir / "url").exists()


def test_it_leaves_the_database_alone_until_it_may(data_dir: Path, eventually: Wait) -> None:
    """As `up` starts it: while the migrations run, which make the tables."""
    theirs, ours = os.pipe()
    environment = os.environ | {"LONGYARD_DATA_DIR": str(data_dir), "LONGYARD_PORT": "0", "LONGYARD_DATABASE_URL": ""}
    argv = [sys.executable, "-m", "api", "--after", str(theirs)]
    with subprocess.Popen(argv, env=environment, pass_fds=[theirs], stderr=subprocess.PIPE) as process:
        os.close(theirs)
        reading = Path(f"/proc/{process.pid}/wchan")
        eventually(lambda: "pipe_read" in reading.read_text() or process.poll() is not None)
        assert list(data_dir.iterdir()) == []
        upgrade(f"sqlite:///{data_dir / 'longyard.db'}")
        os.close(ours)
        with up(data_dir, process, eventually) as client:
            assert client.get("/readyz").json() == {"status": "ok"}
        process.terminate()
        assert process.wait(timeout=10) == 0


def test_it_refuses_to_be_reached_from_elsewhere_by_any_name(
    data_dir: Path, launch: Callable[..., subprocess.Popen[bytes]], eventually: Wait
) -> None:
    upgrade(f"sqlite:///{data_dir / 'longyard.db'}")
    refused = launch(host="0.0.0.0")
    _, stderr = refused.communicate(timeout=30)
    assert refused.returncode == 2
    assert "LONGYARD_ALLOWED_HOSTS" in stderr.decode()
    process = launch(host="0.0.0.0", allowed_hosts="train.example.org")
    with up(data_dir, process, eventually) as client:
        assert str(client.base_url).startswith("http://127.0.0.1:")
        assert client.get("/jobs", headers={"Host": "train.example.org"}).status_code == 200
        assert client.get("/jobs", headers={"Host": "other.example.org"}).status_code == 400
        assert client.get("/jobs", headers={"Host": "0.0.0.0"}).status_code == 400


def test_a_taken_port_is_one_sentence(
    data_dir: Path, launch: Callable[..., subprocess.Popen[bytes]], eventually: Wait
) -> None:
    upgrade(f"sqlite:///{data_dir / 'longyard.db'}")
    first = launch()
    with up(data_dir, first, eventually) as client:
        url = (data_dir / "url").read_text()
        second = launch(port=str(client.base_url.port))
        _, stderr = second.communicate(timeout=30)
        assert second.returncode == 4
        assert stderr.decode().startswith("cannot listen on 127.0.0.1:")
        assert (data_dir / "url").read_text() == url, "the running server's address stays"


def test_what_was_answered_with_2xx_is_there_after_a_kill(
    data_dir: Path, launch: Callable[..., subprocess.Popen[bytes]], eventually: Wait
) -> None:
    """Killed while four clients submit with keys of their own; each comes back with the same keys and gets one job for each."""
    url = f"sqlite:///{data_dir / 'longyard.db'}"
    upgrade(url)
    inputs = data_dir.parent / "inputs"
    inputs.mkdir()
    (inputs / "train.txt").write_text("text")
    (inputs / "lf").mkdir()
    (inputs / "lf" / "tokenizer.json").write_text(TOKENIZER)
    train = {"train_file": f"{inputs}/train.txt", "tokenizer_name": f"{inputs}/lf", "do_eval": False}
    body: dict[str, Any] = {"preset": "demo", "train": train}
    promised: dict[str, str] = {}

    def submit(client: httpx.Client, who: int, process: subprocess.Popen[bytes] | None) -> None:
        for number in range(40):
            key = f"{who}-{number}"
            try:
                answer = client.post("/jobs", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                return
            assert answer.status_code in (200, 201), answer.text
            assert promised.setdefault(key, answer.json()["id"]) == answer.json()["id"]
            if process is not None and len(promised) == 50:
                process.kill()

    first = launch(data_roots=str(inputs))
    with up(data_dir, first, eventually) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda who: submit(client, who, first), range(4)))
    first.wait(timeout=10)
    answered = dict(promised)
    assert 50 <= len(answered) < 160
    (data_dir / "url").unlink()
    second = launch(data_roots=str(inputs))
    with up(data_dir, second, eventually) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda who: submit(client, who, None), range(4)))
    database = Database(url)
    with database.read() as session:
        stored = {job.id for job in jobs.page(session, limit=1000).rows}
    database.dispose()
    assert set(answered.values()) <= stored
    assert stored == set(promised.values())
    assert len(stored) == 160
