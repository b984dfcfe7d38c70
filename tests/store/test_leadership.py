from __future__ import annotations

from store import leadership
from store.db import Database


def take(database: Database, holder: str, *, stale_beat: int | None = None) -> tuple[str, int]:
    with database.write() as session:
        lease = leadership.take(session, leadership.SWEEP, holder=holder, stale_beat=stale_beat)
        return lease.holder, lease.beat


def test_the_first_has_it_and_a_rival_does_not(database: Database) -> None:
    assert take(database, "a") == ("a", 1)
    assert take(database, "b") == ("a", 1)
    assert take(database, "a") == ("a", 2)


def test_a_rival_takes_over_only_the_beat_it_saw_standing_still(database: Database) -> None:
    take(database, "a")
    take(database, "a")
    assert take(database, "b", stale_beat=1) == ("a", 2)
    assert take(database, "b", stale_beat=2) == ("b", 3)
    assert take(database, "a", stale_beat=2) == ("b", 3)


def test_who_leaves_in_order_makes_room_at_once(database: Database) -> None:
    take(database, "a")
    with database.write() as session:
        leadership.give_back(session, leadership.SWEEP, holder="b")
    assert take(database, "b") == ("a", 1)
    with database.write() as session:
        leadership.give_back(session, leadership.SWEEP, holder="a")
    assert take(database, "b") == ("b", 1)
