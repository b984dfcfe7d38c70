"""Owns the connection to a control plane: where it is, the token, one request, the job's stream, and errors people can act on."""

import json
import os
import re
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

# C0 but newline and tab, DEL, C1: none may reach a terminal. Colour sequences are let through by `colored`.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_COLOR = re.compile("\x1b\\[[0-9;]{0,32}m")
GIVE_UP_S = 60.0

Json = dict[str, Any]


class Unreachable(Exception):
    """No plane answers, or it does not know our token. The message names the way out."""


class Problem(Exception):
    """The plane refused a request: problem+json."""

    def __init__(self, body: Json) -> None:
        super().__init__(str(body.get("detail") or body.get("title") or "refused"))
        self.body = body
        self.status = int(body.get("status") or 0)


@dataclass(frozen=True)
class Message:
    """One Server-Sent Event."""

    event: str
    data: Any
    id: str | None


def data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the embedded plane keeps its things: LONGYARD_DATA_DIR, or .longyard here."""
    return Path(environment.get("LONGYARD_DATA_DIR") or ".longyard").expanduser().resolve()


def connect(*, data_dir: Path, environment: Mapping[str, str] = os.environ) -> httpx.Client:
    """A client for LONGYARD_URL with LONGYARD_TOKEN, or for the plane of the data directory. Raises Unreachable.

    A URL in the environment needs its token there too: the data directory's token is not sent to another plane.
    """
    url, token = environment.get("LONGYARD_URL"), environment.get("LONGYARD_TOKEN")
    if not url:
        url = read_text(data_dir / "url")
        token = token or read_text(data_dir / "token")
        if not url:
            raise Unreachable(
                f"no plane runs on {data_dir}: start one by `longyard up`, or set LONGYARD_URL and LONGYARD_TOKEN"
            )
    if not token:
        raise Unreachable(
            f"no token for {url}: set LONGYARD_TOKEN, or LONGYARD_DATA_DIR to where the plane keeps its `token`"
        )
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    timeout = httpx.Timeout(30.0, connect=5.0)
    return httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=not _is_loopback(url))


def request(http: httpx.Client, method: str, path: str, **options: Any) -> Json:
    """One request and its JSON answer. Raises Problem for a refusal, Unreachable when nobody answers or the token is wrong."""
    try:
        answer = http.request(method, path, **options)
    except httpx.TransportError as error:
        raise Unreachable(f"{http.base_url} does not answer ({error}); is `longyard up` running?") from error
    raise_for_problem(answer)
    return cast(Json, answer.json()) if answer.content else {}


def raise_for_problem(answer: httpx.Response) -> None:
    """Turn a refusal into Problem, or into Unreachable for 401; its body must have been read."""
    if answer.is_success or answer.is_redirect:
        return
    if answer.status_code == 401:
        raise Unreachable(
            f"{answer.request.url.copy_with(path='/', query=None)} does not know this token; check LONGYARD_TOKEN"
        )
    try:
        body: Any = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"status": answer.status_code, "title": answer.reason_phrase, "detail": answer.text[:500]}
    raise Problem(cast(Json, {"status": answer.status_code, **cast(Json, body)}))


def answers(url: str) -> bool:
    """Whether an API listens there."""
    try:
        return httpx.get(f"{url}/healthz", timeout=2, trust_env=False).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def login_link(http: httpx.Client) -> str:
    """A link that opens the dashboard once."""
    code = request(http, "POST", "/login-codes", json={})
    return f"{str(http.base_url).rstrip('/')}{code['path']}"


def follow(http: httpx.Client, job_id: str, after: int) -> Generator[Message]:
    """What happens to a job after the cursor, until it has ended. Reconnects where it was cut; Unreachable after a minute without."""
    cursor = str(after)
    lost_at: float | None = None
    while True:
        try:
            for message in _stream(http, job_id, cursor):
                lost_at = None
                cursor = message.id or cursor
                yield message
                if message.event == "end":
                    return
        except (httpx.TransportError, Problem) as error:
            if isinstance(error, Problem) and error.status != 503:
                raise
        now = time.monotonic()
        lost_at = lost_at or now
        if now - lost_at > GIVE_UP_S:
            raise Unreachable(
                f"{http.base_url} does not answer any more; the job goes on, see `longyard show {job_id}`"
            )
        time.sleep(0.5)


def printable(text: str) -> str:
    """Text of others, fit for a terminal: control bytes and direction marks become U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def colored(text: str) -> str:
    """As printable, but colour sequences stay."""
    parts: list[str] = []
    end = 0
    for color in _COLOR.finditer(text):
        parts += [printable(text[end : color.start()]), color.group()]
        end = color.end()
    return "".join([*parts, printable(text[end:])])


def read_text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip() or None
    except OSError:
        return None


def parse_events(lines: Iterable[str]) -> Generator[Message]:
    """Server-Sent Events out of a stream's lines; comments are dropped."""
    event, data, last = "message", list[str](), None
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(event, json.loads("\n".join(data)), last)
            event, data = "message", []
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            last = value


def _stream(http: httpx.Client, job_id: str, cursor: str) -> Generator[Message]:
    # The server sends a comment every 15 s: three missed are a dead connection.
    timeout = httpx.Timeout(50.0, connect=5.0)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": cursor}
    with http.stream(
        "GET", f"/jobs/{job_id}/stream", params={"after": cursor}, headers=headers, timeout=timeout
    ) as answer:
        if not answer.is_success:
            answer.read()
            raise_for_problem(answer)
        yield from parse_events(answer.iter_lines())


def _is_loopback(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
