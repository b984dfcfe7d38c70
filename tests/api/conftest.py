"""A real server on a real socket, with jobs and hosts made by the store's own functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from api.__main__ import listen, server_of, url_of
from api.app import create_app
from api.state import Plane
from api.submission import estimate
from store import attempts, hosts, jobs, tokens
from store.db import Database
from store.jobs import NewJob
from store.models import Attempt
from store.settings import Settings


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> Iterator[None]:
    """As the server writes them; structlog's own default draws every local variable of a traceback."""
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(processors=processors)
    yield
    structlog.reset_defaults()


@dataclass(frozen=True)
class Running:
    """An API server in a thread of this process: its address, and what it holds."""

    url: str
    plane: Plane
    stop: Callable[[], None]


@pytest.fixture
def token(settings: Settings, database: Database) -> str:
    with database.write() as session:
        return tokens.ensure_admin(session, settings.token_file)


@contextmanager
def serving(settings: Settings) -> Generator[Running]:
    app = create_app(settings)
    listener = listen("127.0.0.1", 0, stuck_client_ms=3000)
    server = server_of(app, app.state.plane)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    # The routes are made at the first request, in a way that two servers in one process must not do at the same time.
    try:
        httpx.get(url_of("127.0.0.1", listener) + "/healthz", timeout=20)
        yield Running(url_of("127.0.0.1", listener), app.state.plane, stop=lambda: server.handle_exit(15, None))
    finally:
        if not server.should_exit:
            server.handle_exit(15, None)
        thread.join(timeout=10)
    assert not thread.is_alive(), "the server does not stop"


@contextmanager
def all_turns_taken() -> Generator[None]:
    """As when many ask at once: no estimate is made meanwhile."""
    for _ in range(estimate.AT_ONCE):
        assert estimate._turns.acquire(timeout=60)
    try:
        yield
    finally:
        estimate._turns.release(estimate.AT_ONCE)


@pytest.fixture
def server(settings: Settings, token: str) -> Iterator[Running]:
    with serving(settings) as running:
        yield running


@pytest.fixture
def client(server: Running, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        yield client


@pytest.fixture
def anyone(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def inputs(settings: Settings) -> Path:
    root = settings.data_roots[0]
    (root / "train.txt").write_text("some text to train on\n")
    (root / "valid.txt").write_text("some text to evaluate on\n")
    tokenizer = root / "lf_token"
    tokenizer.mkdir()
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tokenizer / name).write_text("{}")
    return root


@pytest.fixture
def spec(inputs: Path) -> dict[str, Any]:
    files = {"train_file": "train.txt", "validation_file": "valid.txt", "tokenizer_name": "lf_token"}
    return {"preset": "demo", "name": "first", "train": {field: str(inputs / name) for field, name in files.items()}}


@pytest.fixture
def host(database: Database) -> str:
    with database.write() as session:
        hosts.register(
            session, "a", device_type="cpu", device_names=["slot"] * 4, boot_id="boot-1", versions={"torch": "2.13.0"}
        )
    return "a"


@pytest.fixture
def submit(database: Database) -> Callable[..., str]:
    def submit(name: str = "first", **changes: Any) -> str:
        spec: dict[str, Any] = {
            "preset": "demo",
            "train": {"seed": 1},
            "num_devices": 2,
            "device_type": "cpu",
        } | changes
        with database.write() as session:
            return jobs.submit(session, NewJob(name=name, **spec), owner="admin")[0].id

    return submit


@pytest.fixture
def start(database: Database, host: str) -> Callable[[str], Attempt]:
    """Place a job on the host's first free devices and begin it."""

    def start(job_id: str) -> Attempt:
        with database.write() as session:
            free = [one.device.index for one in hosts.all_hosts(session)[0].devices if one.job_id is None]
            wanted = jobs.get(session, job_id).num_devices
            attempt = attempts.place(session, job_id, host=host, device_indices=free[:wanted])
        with database.write() as session:
            attempts.begin(session, attempt.id, job_id=job_id, boot_id="boot-1")
        return attempt

    return start


@pytest.fixture
def running(submit: Callable[..., str], start: Callable[[str], Attempt]) -> Attempt:
    return start(submit())
