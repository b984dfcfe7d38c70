"""Secrets people and browsers show: made here, kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.db import now
from store.errors import Unauthenticated
from store.models import Token

Kind = Literal["token", "session", "login_code"]

ADMIN: Final = "admin"
SESSION_S: Final = 30 * 24 * 3600.0
LOGIN_CODE_S: Final = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Who a request is from. `token_sha256` names the secret it showed, for revoking it."""

    owner: str
    scope: str
    token_sha256: str


def mint(session: Session, *, kind: Kind, owner: str, scope: str, expires_in_s: float | None = None) -> str:
    """A new secret of 32 random bytes; this is the only time it is seen."""
    secret = secrets.token_urlsafe(32)
    _keep(session, secret, kind=kind, owner=owner, scope=scope, expires_in_s=expires_in_s)
    return secret


def verify(session: Session, secret: str, *, kind: Kind) -> Identity:
    """Raises Unauthenticated, which does not tell unknown from expired or revoked."""
    token = session.get(Token, _sha256(secret))
    if (
        token is None
        or token.kind != kind
        or token.revoked_at is not None
        or (token.expires_at is not None and token.expires_at <= now())
    ):
        raise Unauthenticated("unknown, expired or revoked credentials")
    return Identity(token.owner, token.scope, token.sha256)


def valid(session: Session, token_sha256s: Collection[str]) -> set[str]:
    """Those of the secrets, by their SHA-256, that would still be verified now."""
    tokens = session.scalars(select(Token).where(Token.sha256.in_(token_sha256s), Token.revoked_at.is_(None)))
    return {token.sha256 for token in tokens if token.expires_at is None or token.expires_at > now()}


def redeem(session: Session, code: str) -> str:
    """Trade a login code, once, for a session's secret. Raises Unauthenticated."""
    session.get(Token, _sha256(code), with_for_update=True, populate_existing=True)
    identity = verify(session, code, kind="login_code")
    revoke(session, identity.token_sha256)
    return mint(session, kind="session", owner=identity.owner, scope=identity.scope, expires_in_s=SESSION_S)


def revoke(session: Session, token_sha256: str) -> None:
    token = session.get(Token, token_sha256)
    if token is not None and token.revoked_at is None:
        token.revoked_at = now()


def ensure_admin(session: Session, token_file: Path) -> str:
    """The admin's token from its file, made at the first start with mode 0600; the file is the truth, the rows follow it.

    A token that no row knows is a rotation: what opened the door before, tokens, sessions and links, opens it no more. APIs of one
    database therefore share the file. Raises Unauthenticated where the file holds no token, or one that was rotated away.
    """
    token_file.parent.mkdir(parents=True, exist_ok=True)
    if not token_file.exists():
        _make_file(token_file, secrets.token_urlsafe(32))
    token_file.chmod(0o600)
    secret = token_file.read_text().strip()
    if len(secret) < 32:
        raise Unauthenticated(f"{token_file} holds no token; delete it, and the next start makes a new one")
    known = session.get(Token, _sha256(secret))
    if known is not None and known.revoked_at is not None:
        raise Unauthenticated(
            f"{token_file} holds a token that was revoked; delete it, and the next start makes a new one"
        )
    if known is None:
        _rotate(session, secret, token_file)
    return secret


def _rotate(session: Session, secret: str, token_file: Path) -> None:
    # Another that starts on the same file may be first.
    with suppress(IntegrityError), session.begin_nested():
        _keep(session, secret, kind="token", owner=ADMIN, scope=ADMIN, expires_in_s=None)
    older = update(Token).where(Token.owner == ADMIN, Token.revoked_at.is_(None), Token.sha256 != _sha256(secret))
    revoked = session.scalars(older.values(revoked_at=now()).returning(Token.sha256)).all()
    if revoked:
        log.warning("%s holds a new token: %d earlier tokens, sessions and links are revoked", token_file, len(revoked))


def _make_file(path: Path, secret: str) -> None:
    """Whole or not at all; of two that make it at once the first one's stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="token.") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def _keep(session: Session, secret: str, *, kind: Kind, owner: str, scope: str, expires_in_s: float | None) -> None:
    expires_at = None if expires_in_s is None else now() + timedelta(seconds=expires_in_s)
    session.add(
        Token(sha256=_sha256(secret), kind=kind, owner=owner, scope=scope, created_at=now(), expires_at=expires_at)
    )
    session.flush()


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
