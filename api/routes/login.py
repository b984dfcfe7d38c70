"""Signing in: a one-time code or a token becomes a cookie."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api import auth, schemas
from api.deps import Caller, CurrentPlane
from api.errors import Problem, blame, documented
from store import tokens
from store.db import now
from store.errors import Unauthenticated

router = APIRouter(tags=["login"])

MAX_FAILURES: Final = 10
WINDOW_S: Final = 60.0
MAX_ADDRESSES: Final = 10_000


class Throttle:
    """Counts failed sign-ins by address. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises Problem where too many have failed within the window."""
        with self._lock:
            failures = self._recent(address)
            if len(failures) >= MAX_FAILURES:
                wait_s = WINDOW_S - (time.monotonic() - failures[0])
                headers = {"Retry-After": str(int(wait_s) + 1)}
                raise Problem("rate_limited", "Too many sign-ins have failed; wait a minute.", headers=headers)

    def failed(self, address: str) -> None:
        with self._lock:
            self._recent(address).append(time.monotonic())

    def _recent(self, address: str) -> deque[float]:
        failures = self._failures.setdefault(address, deque(maxlen=MAX_FAILURES))
        self._failures.move_to_end(address)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        while failures and time.monotonic() - failures[0] > WINDOW_S:
            failures.popleft()
        return failures


@router.post("/login-codes", status_code=201, responses=documented("forbidden"))
def create_login_code(request: Request, plane: CurrentPlane, caller: Caller) -> schemas.LoginCode:
    """A code that signs one browser in, once, within ten minutes. Needs a token: a session cannot make further ones."""
    if request.state.credentials != "token":
        raise Problem("forbidden", "Login codes are made with a token, not from a browser's session.")
    with plane.database.write() as session:
        code = tokens.mint(
            session, kind="login_code", owner=caller.owner, scope=caller.scope, expires_in_s=tokens.LOGIN_CODE_S
        )
    return schemas.LoginCode(
        code=code, expires_at=now() + timedelta(seconds=tokens.LOGIN_CODE_S), path=f"/ui/login#{code}"
    )


@router.post(
    "/login",
    status_code=204,
    responses=documented("invalid_request", "rate_limited", "unsupported_media_type"),
    openapi_extra={"security": []},
)
def login(credentials: schemas.Credentials, request: Request, plane: CurrentPlane) -> Response:
    """Trade a code, or a token, for the cookie `longyard_session`."""
    throttle: Throttle = request.app.state.throttle
    address = request.client.host if request.client else ""
    throttle.check(address)
    if (credentials.code is None) == (credentials.token is None):
        field = schemas.FieldError(
            field="code", code="missing", message="give either a code or a token", fix="give one of the two"
        )
        raise blame("invalid_request", [field])
    try:
        with plane.database.write() as session:
            secret = _session(session, credentials)
    except Unauthenticated:
        throttle.failed(address)
        raise
    response = Response(status_code=204)
    response.set_cookie(
        auth.COOKIE,
        secret,
        max_age=int(tokens.SESSION_S),
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout", status_code=204)
def logout(request: Request, plane: CurrentPlane, caller: Caller) -> Response:
    """End this browser's session. A token stays as it is."""
    if request.state.credentials == "session":
        with plane.database.write() as session:
            tokens.revoke(session, caller.token_sha256)
        plane.identities.forget()
    response = Response(status_code=204)
    response.delete_cookie(auth.COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _session(session: Session, credentials: schemas.Credentials) -> str:
    if credentials.code is not None:
        return tokens.redeem(session, credentials.code)
    assert credentials.token is not None
    identity = tokens.verify(session, credentials.token, kind="token")
    return tokens.mint(
        session, kind="session", owner=identity.owner, scope=identity.scope, expires_in_s=tokens.SESSION_S
    )
