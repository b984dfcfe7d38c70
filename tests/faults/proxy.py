"""A way between a part of the plane and a server that can be cut, stalled, or made to lose the answer to one statement of PostgreSQL."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import make_url

RESET = struct.pack("ii", 1, 0)
HEADER_BYTES = 5
Address = str | tuple[str, int]
"""A unix socket's path, or host and port."""


def to_postgres(database_url: str) -> tuple[Proxy, str]:
    """A proxy before the server, and the URL that leads through it."""
    url = make_url(database_url)
    host = str(url.query.get("host") or url.host or "127.0.0.1")
    port = url.port or 5432
    proxy = Proxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port), speaks_postgres=True)
    # Encrypted, the statements could not be told apart.
    plain = url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable", "gssencmode": "disable"})
    return proxy, plain.render_as_string(hide_password=False)


def to_broker(socket_path: str) -> tuple[Proxy, str]:
    proxy = Proxy(socket_path)
    return proxy, f"redis://127.0.0.1:{proxy.port}"


@dataclass
class Way:
    """One client's connection through. `statement` counts what PostgreSQL was asked; `swallowed` holds an answer nobody will see."""

    client: socket.socket
    server: socket.socket
    has_begun: bool = False
    sent: bytearray = field(default_factory=bytearray)
    swallowed: bytearray | None = None


class Proxy:
    """Listens on a free port of 127.0.0.1 and leads to another address, until it is closed. One thread."""

    def __init__(self, upstream: Address, *, speaks_postgres: bool = False) -> None:
        self._upstream, self._speaks_postgres = upstream, speaks_postgres
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, Way] = {}
        self._lock = threading.RLock()
        self._waker, self._wake = socket.socketpair()
        self._is_closed = self._is_cut = self._is_stalled = False
        self._lose_in: int | None = None
        self._lose_commit_only = False
        self.num_lost = 0
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def reset(self) -> None:
        """Every connection, once."""
        with self._lock:
            while self._ways:
                self._drop(next(iter(self._ways.values())))

    @contextmanager
    def cut(self) -> Generator[None]:
        """For a block, connections are reset and new ones too."""
        with self._lock:
            self._is_cut = True
            self.reset()
        yield
        with self._lock:
            self._is_cut = False

    @contextmanager
    def stalled(self) -> Generator[None]:
        """For a block nothing gets through in either direction, and nothing says so."""
        with self._lock:
            self._is_stalled = True
        yield
        with self._lock:
            self._is_stalled = False
            self._wake.send(b"\0")

    def lose_answer(self, number: int, *, of_commits: bool = False) -> None:
        """The server does the `number`th statement from now on, of COMMITs alone where wished; its client is reset instead of answered."""
        with self._lock:
            self._lose_in, self._lose_commit_only = number, of_commits

    def close(self) -> None:
        self._is_closed = True
        self._wake.send(b"\0")
        self._thread.join(timeout=10)
        self.reset()
        for one in (self._listener, self._waker, self._wake):
            one.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._is_closed:
            ready = self._selector.select(1.0)
            with self._lock:
                if self._is_stalled and not self._is_closed:
                    self._await_word()
                    continue
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._waker:
                        self._waker.recv(64)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._ways:
                        self._forward(key.fileobj)

    def _await_word(self) -> None:
        """Readable sockets would make the loop spin: while stalled, only the end of it is waited for."""
        self._lock.release()
        try:
            self._waker.settimeout(0.1)
            self._waker.recv(64)
        except TimeoutError:
            pass
        finally:
            self._waker.settimeout(None)
            self._lock.acquire()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._is_cut:
            _reset(client)
            return
        is_path = isinstance(self._upstream, str)
        server = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
        try:
            server.connect(self._upstream)
        except OSError:
            server.close()
            _reset(client)
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        way = Way(client, server)
        for one in (client, server):
            self._ways[one] = way
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        way = self._ways[source]
        try:
            data = source.recv(1 << 16)
            if not data:
                self._drop(way)
            elif source is way.server:
                self._answer(way, data)
            else:
                self._count(way, data)
                way.server.sendall(data)
        except OSError:
            self._drop(way)

    def _answer(self, way: Way, data: bytes) -> None:
        if way.swallowed is None:
            way.client.sendall(data)
            return
        way.swallowed += data
        # "Ready for query": the statement is done.
        if any(kind == b"Z" for kind, _ in _messages(way.swallowed)):
            self.num_lost += 1
            self._drop(way)

    def _count(self, way: Way, data: bytes) -> None:
        if not self._speaks_postgres:
            return
        if not way.has_begun:
            # The first message of a connection has no kind.
            way.has_begun = True
            return
        way.sent += data
        is_commit = b"COMMIT" in way.sent
        statements = [kind for kind, _ in _messages(way.sent) if kind in (b"Q", b"S")]
        if self._lose_in is None or not statements or (self._lose_commit_only and not is_commit):
            return
        self._lose_in -= 1
        if self._lose_in == 0:
            self._lose_in, way.swallowed = None, bytearray()

    def _drop(self, way: Way) -> None:
        for one in (way.client, way.server):
            if self._ways.pop(one, None) is not None:
                self._selector.unregister(one)
        _reset(way.client)
        way.server.close()


def _messages(stream: bytearray) -> list[tuple[bytes, bytes]]:
    """Takes the whole messages off a PostgreSQL stream: kind and body."""
    found: list[tuple[bytes, bytes]] = []
    while len(stream) >= HEADER_BYTES:
        length = int.from_bytes(stream[1:HEADER_BYTES]) + 1
        if len(stream) < length:
            break
        found.append((bytes(stream[:1]), bytes(stream[HEADER_BYTES:length])))
        del stream[:length]
    return found


def _reset(client: socket.socket) -> None:
    """RST instead of a polite end: what was on its way is lost."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
