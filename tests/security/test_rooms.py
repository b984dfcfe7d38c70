"""What import contracts cannot see: names of foreign packages, and calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_SQL = ("api", "worker", "cli", "trainer")
ROOMS = (*WITHOUT_SQL, "store", "migrations", "benchmarks")
SPARED = {("sqlalchemy.orm", "Session")}
"""What those that write no SQL may have of SQLAlchemy, beside its exceptions: the session that the store's functions take."""


def test_sql_is_written_in_the_store_alone() -> None:
    found = {
        (module, name) for room in WITHOUT_SQL for module, name in _imports(room) if module.startswith("sqlalchemy")
    }
    assert {one for one in found if one[0] != "sqlalchemy.exc"} == SPARED


def test_no_room_makes_or_drops_tables_past_the_revisions() -> None:
    """A table that `create_all` made is one that no revision knows."""
    calls = [
        name.attr
        for room in ROOMS
        for tree in _trees(room)
        for name in ast.walk(tree)
        if isinstance(name, ast.Attribute) and name.attr in {"create_all", "drop_all"}
    ]
    assert calls == []


def _imports(room: str) -> Iterator[tuple[str, str]]:
    for tree in _trees(room):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((node.module, alias.name) for alias in node.names)


def _trees(room: str) -> Iterator[ast.Module]:
    found = [ast.parse(path.read_bytes()) for path in (ROOT / room).rglob("*.py")]
    assert found, room
    yield from found
