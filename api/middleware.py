"""The outermost layer: a request's id, the headers every answer carries, the access log, and the answer to a bug."""

from __future__ import annotations

import time
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from store import ids

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log = structlog.get_logger("api.access")


class Edge:
    """ASGI. Nothing that a request holds but its method and path is logged: queries, headers and bodies may be secret."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = ids.new()
        started, status = time.monotonic(), 0

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            await self._app(scope, receive, finish)
        except ClientDisconnect:
            pass
        except Exception as error:  # noqa: BLE001 - the process's edge: logged with the request's id
            problem = errors.of_exception(error) or errors.of_bug(error, request_id=request_id)
            if status == 0:
                await errors.response(problem, request_id=request_id)(scope, receive, finish)
        finally:
            _log(scope, request_id, status=status, duration_s=time.monotonic() - started)


def _complete(headers: MutableHeaders, request_id: str) -> None:
    headers["X-Request-Id"] = request_id
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")


def _log(scope: Scope, request_id: str, *, status: int, duration_s: float) -> None:
    identity = scope["state"].get("identity")
    say = log.debug if scope["path"] == "/healthz" else log.info
    say(
        "request",
        request_id=request_id,
        method=scope["method"],
        path=scope["path"][:256],
        status=status,
        duration_ms=round(duration_s * 1000, 1),
        owner=identity.owner if identity else None,
    )
