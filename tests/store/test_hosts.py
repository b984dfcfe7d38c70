"""Hosts as others see them while they change."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event

from store import hosts
from store.db import Database


def _register(database: Database, name: str) -> None:
    with database.write() as session:
        hosts.register(session, name, device_type="cpu", device_names=["slot"], boot_id="1", versions={})


def test_a_host_that_registers_between_two_looks_is_seen_by_the_next(database: Database) -> None:
    _register(database, "first")

    def register(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT hosts") and not asked:
            asked.append(statement)
            _register(database, "second")

    asked: list[str] = []
    event.listen(database.engine, "after_cursor_execute", register)
    with database.read() as session:
        assert [view.host.name for view in hosts.all_hosts(session)] == ["first"]
    with database.read() as session:
        assert [(view.host.name, len(view.devices)) for view in hosts.all_hosts(session)] == [
            ("first", 1),
            ("second", 1),
        ]
