"""Who may call: the guard before every route, and the cache of whom a secret belongs to.

It stands before the routing, so that a route, a mount or an unknown path cannot be forgotten: what is not in OPEN needs credentials.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, static_files
from api.errors import Problem
from store import tokens
from store.db import Database
from store.settings import Settings
from store.tokens import Identity

COOKIE: Final = "longyard_session"
MAX_BODY_BYTES: Final = 256 * 1024
MAX_STRANGERS_BODY_BYTES: Final = 4 * 1024
"""From whoever has not shown credentials: reading much costs time that others wait for."""
BODY_TIMEOUT_S: Final = 15.0
REMEMBER_S: Final = 0.8  # a revoked secret is refused within a second
MAX_REMEMBERED: Final = 1024

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - refused here
LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")

OPEN: Final[Sequence[tuple[frozenset[str], re.Pattern[str]]]] = (
    (frozenset({"GET", "HEAD"}), re.compile(r"/healthz")),
    (frozenset({"GET", "HEAD"}), re.compile(r"/ui/login")),
    (frozenset({"GET", "HEAD"}), re.compile(r"/ui/assets/[A-Za-z0-9_.-]+")),
    (frozenset({"POST"}), re.compile(r"/login")),
)
"""All that answers without credentials, by method and whole path."""


class Identities:
    """Whose a secret is, remembered for less than a second. Safe from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[Identity, float]] = {}

    def remembered(self, secret: str, *, kind: tokens.Kind) -> Identity | None:
        known = self._known.get(_key(secret, kind))
        return known[0] if known and time.monotonic() - known[1] < REMEMBER_S else None

    def verify(self, secret: str, *, kind: tokens.Kind) -> Identity:
        """Blocks on the database. Raises store.errors.Unauthenticated."""
        asked_at = time.monotonic()
        with self._database.read() as session:
            identity = tokens.verify(session, secret, kind=kind)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[_key(secret, kind)] = (identity, asked_at)
        return identity

    def forget(self) -> None:
        self._known.clear()


class Guard:
    """ASGI: Host allow-list, credentials, origin of browser requests, JSON only, bounded bodies; in this order."""

    def __init__(self, app: ASGIApp, *, settings: Settings, identities: Identities) -> None:
        self._app = app
        names = (*LOOPBACK, settings.host, *settings.allowed_hosts)
        self._hosts = frozenset(name.lower() for name in names if name not in WILDCARDS)
        self._identities = identities
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            credentials = await self._admit(scope, headers)
            _check_origin(scope, headers, credentials)
            if scope["method"] not in SAFE:
                limit = MAX_STRANGERS_BODY_BYTES if credentials == "open" else MAX_BODY_BYTES
                receive = await _bounded_body(headers, receive, limit)
        except Exception as error:
            problem = errors.of_exception(error)
            if problem is None:
                raise
            answer = _sign_in_page(scope, headers, problem) or errors.response(
                problem, request_id=scope["state"]["request_id"]
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site that resolves its own name to our address sends that name: DNS rebinding ends here."""
        names = headers.getlist("host")
        if len(names) != 1 or _without_port(names[0]).lower() not in self._hosts:
            raise Problem(
                "invalid_host",
                "This server is not called by that name. Add it to LONGYARD_ALLOWED_HOSTS if it should be.",
            )

    async def _admit(self, scope: Scope, headers: Headers) -> Literal["open", "token", "session"]:
        if any(scope["method"] in methods and path.fullmatch(scope["path"]) for methods, path in OPEN):
            return "open"
        secret, kind = _credentials(headers)
        identity = self._identities.remembered(secret, kind=kind)
        if identity is None:
            self._limiter = self._limiter or anyio.CapacityLimiter(8)
            identity = await anyio.to_thread.run_sync(
                lambda: self._identities.verify(secret, kind=kind), limiter=self._limiter
            )
        scope["state"]["identity"], scope["state"]["credentials"] = identity, kind
        return kind


def _key(secret: str, kind: tokens.Kind) -> str:
    return hashlib.sha256(f"{kind} {secret}".encode()).hexdigest()


def _without_port(host: str) -> str:
    return re.sub(r":\d{1,5}$", "", host)


def _credentials(headers: Headers) -> tuple[str, Literal["token", "session"]]:
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(secret.strip()) <= 256:
            raise Problem(
                "unauthenticated",
                "Send `Authorization: Bearer <token>`; the token is in the data directory's file `token`.",
            )
        return secret.strip(), "token"
    secret = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    if not 0 < len(secret) <= 256:
        raise Problem("unauthenticated", "Send `Authorization: Bearer <token>`, or sign in at /ui/login.")
    return secret, "session"


def _check_origin(scope: Scope, headers: Headers, credentials: Literal["open", "token", "session"]) -> None:
    """What changes something comes from our own pages, or from no page at all; under a cookie the browser has to say so."""
    if scope["method"] in SAFE:
        return
    fetch_site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    foreign = (fetch_site is not None and fetch_site != "same-origin") or (
        origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower()
    )
    if foreign or (credentials == "session" and fetch_site is None and origin is None):
        raise Problem("forbidden", "This request does not come from a page of this server.")


async def _bounded_body(headers: Headers, receive: Receive, limit: int) -> Receive:
    """The whole body, read before anything looks at it, so that no route can be fed without end."""
    length = headers.get("content-length")
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    content_type = headers.get("content-type")
    if (has_body or content_type is not None) and (content_type or "").partition(";")[
        0
    ].strip().lower() != "application/json":
        raise Problem("unsupported_media_type", "Send JSON, with `Content-Type: application/json`.")
    if length is not None and (not length.isdecimal() or len(length) > 12 or int(length) > limit):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read(receive, limit)
    except TimeoutError:
        problem = f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s."
        raise Problem("request_timeout", problem, headers={"Connection": "close"}) from None
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _read(receive: Receive, limit: int) -> bytes:
    parts, length, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        more = message.get("more_body", False)
        if length > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    detail = f"The body is larger than {limit // 1024} KiB."
    if limit == MAX_BODY_BYTES:
        detail += " Put data into files and name them."
    return Problem("too_large", detail, headers={"Connection": "close"})


def _sign_in_page(scope: Scope, headers: Headers, problem: Problem) -> ASGIApp | None:
    """A person whose browser opens the dashboard without a session gets the page to sign in at, still as a 401."""
    is_page = scope["method"] == "GET" and (scope["path"] == "/" or scope["path"].startswith("/ui"))
    if problem.code == "unauthenticated" and is_page and "text/html" in headers.get("accept", ""):
        return static_files.login_page(status=problem.status)
    return None
