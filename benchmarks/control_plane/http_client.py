"""Owns one keep-alive HTTP connection and its event streams: of the standard library, so that the client costs little itself."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 60.0
QUIET_S: Final = 3.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        """Raises RuntimeError where the request was refused: a bench never counts a refusal as work."""
        if not 200 <= self.status < 300:
            raise RuntimeError(f"HTTP {self.status}: {self.body[:500].decode(errors='replace')}")
        return json.loads(self.body)


@dataclass(frozen=True)
class Message:
    """One Server-Sent Event."""

    kind: str
    data: Any


class Connection:
    """One TCP connection that stays open."""

    def __init__(self, url: str, token: str) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        self._used_at = time.monotonic()

    def get(self, path: str) -> Answer:
        self._renew()
        self._http.request("GET", path, headers=self._headers)
        return self._answer()

    def post(self, path: str, body: Json | None = None) -> Answer:
        self._renew()
        data = None if body is None else json.dumps(body).encode()
        self._http.request("POST", path, data, {**self._headers, "Content-Type": "application/json"})
        return self._answer()

    def submit(self, spec: Json) -> str:
        """The id of the job, which a 201 has answered."""
        return self.post("/jobs", spec).json()["id"]

    @contextmanager
    def stream(self, path: str) -> Generator[Generator[Message]]:
        """Messages as they arrive, over a connection of its own."""
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status} for {path}")
            yield _messages(response)
        finally:
            connection.close()

    def close(self) -> None:
        self._http.close()

    def _renew(self) -> None:
        """The server closes a connection that has been silent for five seconds: connect anew before it has."""
        now = time.monotonic()
        if now - self._used_at > QUIET_S:
            self._http.close()
        self._used_at = now

    def _answer(self) -> Answer:
        response = self._http.getresponse()
        return Answer(response.status, response.read())


def _messages(response: http.client.HTTPResponse) -> Generator[Message]:
    kind, data = "", list[str]()
    while row := response.readline():
        text = row.decode().rstrip("\r\n")
        name, _, value = text.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif not text and kind:
            yield Message(kind, json.loads("\n".join(data)))
            kind, data = "", []
