"""`python -m api`: one server process. Writes where it listens to `<data>/url`, and ends its open streams at once when told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import json
import logging
import os
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson
import structlog
import uvicorn

from api.app import create_app
from api.errors import DATABASE_ERRORS
from api.state import Plane
from store import tokens
from store.db import REVISION
from store.errors import BadSettings, Unauthenticated
from store.settings import Settings, load

STUCK_CLIENT_MS: Final = 20_000
"""A client that takes nothing for so long is cut off by the kernel: an application cannot, its own writes are behind the same wall."""

log = structlog.get_logger("api")


class Server(uvicorn.Server):
    """Ends streams when it is told to stop, so that stopping does not wait for clients who would stay for ever."""

    def __init__(self, config: uvicorn.Config, plane: Plane) -> None:
        super().__init__(config)
        self._plane = plane
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal does not wait for requests either. The signal is not raised again: stopping when asked is success."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._plane.streams.end_all)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api")
    parser.add_argument(
        "--after", type=int, metavar="FD", help="leave the database alone until this descriptor is closed"
    )
    after: int | None = parser.parse_args().after
    try:
        settings = load()
    except BadSettings as error:
        print(error, file=sys.stderr)  # noqa: T201 - for the person at the terminal
        return 2
    # What it writes is for its own account: the database, the token.
    os.umask(0o077)
    _log_as_json(settings.log_level)
    refusal = _refusal(settings)
    if refusal is not None:
        print(refusal, file=sys.stderr)  # noqa: T201 - for the person at the terminal
        return 2
    app = create_app(settings)
    plane: Plane = app.state.plane
    if after is not None:
        os.read(after, 1)
    refusal = _prepare(plane)
    if refusal is not None:
        print(refusal, file=sys.stderr)  # noqa: T201
        return 3
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        print(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 4
    url = url_of(settings.host, listener)
    _write_url(settings.url_file, url)
    log.info("listening", url=url)
    _collect_rarely()
    try:
        server_of(app, plane).run(sockets=[listener])
    finally:
        _remove_url(settings.url_file, url)
    return 0


def server_of(app: object, plane: Plane) -> Server:
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=plane.settings.shutdown_grace_s,  # pyright: ignore[reportArgumentType] - it goes to asyncio.wait_for
    )
    return Server(config, plane)


def listen(host: str, port: int, *, stuck_client_ms: int = STUCK_CLIENT_MS) -> socket.socket:
    """Raises OSError where the address is taken or is not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stuck_client_ms)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Where this machine's programs reach it: the wildcard addresses are no address to call."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{listener.getsockname()[1]}"


def _refusal(settings: Settings) -> str | None:
    if _is_loopback(settings.host) or settings.allowed_hosts:
        return None
    return (
        f"LONGYARD_HOST={settings.host} can be reached from other machines, and pages of any site may call it by a name of their own.\n"
        "Set LONGYARD_ALLOWED_HOSTS to the names people will call this server by, and put TLS before it: tokens travel as they are."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _prepare(plane: Plane) -> str | None:
    """The admin's token; a sentence where the database is not as this code needs it."""
    try:
        revision = plane.database.schema_revision()
    except DATABASE_ERRORS as error:
        return f"The database does not open ({error.__cause__}). `python -m migrations` makes one; else see LONGYARD_DATABASE_URL."
    if revision != REVISION:
        return (
            f"The database is at schema {revision or 'none'}, this code needs {REVISION}. Run `python -m migrations`."
        )
    try:
        with plane.database.write() as session:
            tokens.ensure_admin(session, plane.settings.token_file)
    except Unauthenticated as error:
        return str(error)
    return None


def _write_url(path: Path, url: str) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(url + "\n")
    fresh.replace(path)


def _remove_url(path: Path, url: str) -> None:
    """Unless another server on the same data directory has written its own meanwhile."""
    try:
        if path.read_text().strip() == url:
            path.unlink()
    except FileNotFoundError:
        pass


def _collect_rarely() -> None:
    """What was imported stays: the collector need not look at it again, nor after every few requests. A tenth of a request's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _log_as_json(level: str) -> None:
    """One JSON object a line on stderr, for our own lines and the libraries'. Ours go there directly: there is one a request."""
    shared: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(_as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    foreign = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processor=structlog.processors.JSONRenderer(lambda line, **options: _as_json(line, **options).decode()),
    )
    handler.setFormatter(foreign)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("uvicorn").setLevel("ERROR" if level == "error" else "WARNING")


class _Lines(structlog.BytesLogger):
    """Writes to stderr; `name` is shown in each line."""

    def __init__(self, name: str) -> None:
        super().__init__(sys.stderr.buffer)
        self.name = name


def _as_json(line: Any, **options: Any) -> bytes:
    try:
        return orjson.dumps(line, **options)
    except TypeError:
        # Halves of surrogate pairs, which somebody has sent us: the other encoder escapes them.
        return json.dumps(line, **options).encode()


if __name__ == "__main__":
    sys.exit(main())
