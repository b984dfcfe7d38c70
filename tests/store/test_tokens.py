from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from store import tokens
from store.db import Database
from store.errors import Unauthenticated
from store.models import Token


def test_the_secret_itself_is_not_stored(database: Database) -> None:
    with database.write() as session:
        secret = tokens.mint(session, kind="token", owner="admin", scope="admin")
    with database.read() as session:
        assert tokens.verify(session, secret, kind="token").owner == "admin"
        assert secret not in repr([vars(token) for token in session.scalars(select(Token))])


@pytest.mark.parametrize("kind", ["session", "login_code"])
def test_one_kind_does_not_pass_for_another(database: Database, kind: tokens.Kind) -> None:
    with database.write() as session:
        secret = tokens.mint(session, kind=kind, owner="admin", scope="admin", expires_in_s=60)
    with pytest.raises(Unauthenticated), database.read() as session:
        tokens.verify(session, secret, kind="token")


def test_an_expired_or_revoked_secret_is_unknown(database: Database) -> None:
    with database.write() as session:
        expired = tokens.mint(session, kind="token", owner="admin", scope="admin", expires_in_s=-1)
        revoked = tokens.mint(session, kind="token", owner="admin", scope="admin")
        tokens.revoke(session, tokens.verify(session, revoked, kind="token").token_sha256)
    with database.read() as session:
        for secret in (expired, revoked, "guess"):
            with pytest.raises(Unauthenticated):
                tokens.verify(session, secret, kind="token")


def test_a_login_code_works_once(database: Database) -> None:
    with database.write() as session:
        code = tokens.mint(session, kind="login_code", owner="admin", scope="admin", expires_in_s=60)
    with database.write() as session:
        cookie = tokens.redeem(session, code)
    with database.read() as session:
        assert tokens.verify(session, cookie, kind="session").scope == "admin"
    with pytest.raises(Unauthenticated), database.write() as session:
        tokens.redeem(session, code)


def test_another_token_file_shuts_out_what_the_earlier_one_let_in(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with database.write() as session:
        first = tokens.ensure_admin(session, file)
        cookie = tokens.mint(session, kind="session", owner="admin", scope="admin", expires_in_s=60)
        link = tokens.mint(session, kind="login_code", owner="admin", scope="admin", expires_in_s=60)
        others = tokens.mint(session, kind="token", owner="ada", scope="submit")
    file.unlink()
    with database.write() as session:
        second = tokens.ensure_admin(session, file)
    old: list[tuple[str, tokens.Kind]] = [(first, "token"), (cookie, "session"), (link, "login_code")]
    with database.read() as session:
        for secret, kind in old:
            with pytest.raises(Unauthenticated):
                tokens.verify(session, secret, kind=kind)
        assert tokens.verify(session, second, kind="token").owner == "admin"
        assert tokens.verify(session, others, kind="token").owner == "ada"
    file.write_text(first)
    with pytest.raises(Unauthenticated, match="was revoked; delete it"), database.write() as session:
        tokens.ensure_admin(session, file)
    with database.read() as session:
        assert tokens.verify(session, second, kind="token").owner == "admin"


def test_servers_that_start_at_once_keep_one_token(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def start() -> str:
        with database.write() as session:
            return tokens.ensure_admin(session, file)

    with ThreadPoolExecutor(8) as pool:
        found = {one.result() for one in [pool.submit(start) for _ in range(8)]}
    (secret,) = found
    with database.read() as session:
        assert tokens.verify(session, secret, kind="token").owner == "admin"


def test_the_admins_token_is_made_once_and_kept_private(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    with database.write() as session:
        first = tokens.ensure_admin(session, file)
    file.chmod(0o644)
    with database.write() as session:
        assert tokens.ensure_admin(session, file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with database.read() as session:
        assert tokens.verify(session, first, kind="token").scope == "admin"
