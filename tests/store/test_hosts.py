"""Hosts as others see them while they change, and what people take out of use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from store import attempts, hosts, planning_queue
from store.db import Database
from store.errors import NotFound, PlacementConflict
from store.models import Attempt
from store.states import ExitReason, HostStatus
from store.usage import Usage


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


def test_a_drained_host_takes_nothing_until_that_is_taken_back(
    database: Database, running: Attempt, submit: Callable[[], str]
) -> None:
    job_id = submit()
    with database.write() as session:
        drained_at = hosts.drain(session, "a").drained_at
        assert hosts.drain(session, "a").drained_at == drained_at is not None
    with pytest.raises(PlacementConflict, match="takes no jobs"), database.write() as session:
        attempts.place(session, job_id, host="a", device_indices=[2, 3])
    with database.read() as session:
        assert planning_queue.read(session, Usage()).hosts[0].usable == ()
    # Its worker restarts, is lost and heard again: a person's wish is none of its business.
    with database.write() as session:
        hosts.leave(session, "a")
        hosts.register(session, "a", device_type="cpu", device_names=["slot"] * 4, boot_id="2", versions={})
        hosts.lose(session, "a")
        assert hosts.view(session, "a").status is HostStatus.LOST
        hosts.beat(session, "a")
    with database.read() as session:
        assert hosts.view(session, "a").status is HostStatus.DRAINING
    end(database, running)
    with database.write() as session:
        hosts.undrain(session, "a")
        assert hosts.view(session, "a").status is HostStatus.ONLINE
        attempts.place(session, job_id, host="a", device_indices=[2, 3])


def test_a_cordoned_device_is_given_to_nobody_once_it_is_free(
    database: Database, running: Attempt, submit: Callable[[], str]
) -> None:
    job_id = submit()
    with database.write() as session:
        cordoned_at = hosts.cordon(session, "a", 1).cordoned_at
        assert hosts.cordon(session, "a", 1).cordoned_at == cordoned_at is not None
    end(database, running)
    with database.read() as session:
        assert hosts.view(session, "a").capacity.free == (0, 2, 3)
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, job_id, host="a", device_indices=[0, 1])
    with database.write() as session:
        hosts.uncordon(session, "a", 1)
        attempts.place(session, job_id, host="a", device_indices=[0, 1])


def test_what_is_not_there_can_be_neither_drained_nor_cordoned(database: Database, host: str) -> None:
    for ask in (
        lambda session: hosts.drain(session, "b"),
        lambda session: hosts.undrain(session, "b"),
        lambda session: hosts.cordon(session, host, 4),
        lambda session: hosts.uncordon(session, "b", 0),
        lambda session: hosts.view(session, "b"),
    ):
        with pytest.raises(NotFound), database.write() as session:
            ask(session)


def test_a_drain_and_a_placement_at_once_go_one_after_the_other(
    database: Database, host: str, submit: Callable[[], str]
) -> None:
    """Whoever drains waits for a placement that has begun; and none begins after the answer."""
    first, second = submit(), submit()
    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            attempts.place(session, first, host=host, device_indices=[0, 1])
            drained = pool.submit(drain, database, host)
            with pytest.raises(TimeoutError):
                drained.result(timeout=0.3)
        drained.result(timeout=30)
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, second, host=host, device_indices=[2, 3])


def drain(database: Database, name: str) -> None:
    with database.write() as session:
        hosts.drain(session, name)


def end(database: Database, attempt: Attempt) -> None:
    with database.write() as session:
        attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=ExitReason.COMPLETED, message=None, devices_clean=True
        )
