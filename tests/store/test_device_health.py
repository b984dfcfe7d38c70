"""What a host saw of its devices, while others hold and free them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from store import attempts, device_health, hosts, jobs
from store.db import Database
from store.device_health import Reading
from store.errors import PlacementConflict
from store.hosts import UNSEEN
from store.jobs import NewJob
from store.states import ExitReason

WELL = [Reading(0, "ok", 40.0, 0.0, 3 << 30, 64 << 30), Reading(1, "ok", 41.0, 0.0, 3 << 30, 64 << 30)]
TAKEN = [Reading(index, "ok", residue="process 99 (python) of nobody's job on it") for index in (0, 1)]
SICK = [Reading(0, "alarm", ailment="npu-smi says its health is ALARM"), WELL[1]]


@pytest.fixture
def host(database: Database) -> Database:
    with database.write() as session:
        hosts.register(session, "npu-07", device_type="npu", device_names=["a", "b"], boot_id="1", versions={})
        device_health.observe(session, "npu-07", WELL, seen=())
    return database


def _observe(database: Database, readings: Sequence[Reading], *, seen: Sequence[int] = ()) -> bool:
    with database.write() as session:
        return device_health.observe(session, "npu-07", readings, seen=seen)


def _free(database: Database) -> tuple[int, ...]:
    with database.read() as session:
        return hosts.all_hosts(session)[0].capacity.free


def _usable(database: Database) -> tuple[int, ...]:
    with database.read() as session:
        return hosts.all_hosts(session)[0].capacity.usable


def _place(database: Database) -> str:
    with database.write() as session:
        job = jobs.submit(session, NewJob("n", "demo", {}, 1, "npu"), owner="admin")[0]
        return attempts.place(session, job.id, host="npu-07", device_indices=[0]).id


def _close(database: Database, attempt_id: str) -> None:
    with database.write() as session:
        job_id = attempts.get(session, attempt_id).job_id
        attempts.close(
            session, attempt_id, job_id=job_id, reason=ExitReason.LAUNCH_ERROR, message=None, devices_clean=True
        )


def test_a_sick_device_is_given_to_nobody_until_it_is_well(host: Database) -> None:
    assert _observe(host, SICK)
    assert (_free(host), _usable(host)) == ((1,), (1,))
    with pytest.raises(PlacementConflict):
        _place(host)
    assert not _observe(host, SICK)
    assert _observe(host, WELL)
    assert _free(host) == (0, 1)


def test_what_is_on_a_device_counts_only_while_nobody_holds_it(host: Database) -> None:
    attempt_id = _place(host)
    assert _observe(host, TAKEN)
    assert (_free(host), _usable(host)) == ((), (0,))
    _close(host, attempt_id)
    assert (_free(host), _usable(host)) == ((), (0,))


def test_a_device_that_was_freed_waits_for_a_look_that_began_later(host: Database) -> None:
    _close(host, _place(host))
    with host.read() as session:
        assert device_health.unseen(session, "npu-07") == [0]
    assert (_free(host), _usable(host)) == ((1,), (0, 1))
    # A look from before the end saw what was there then: it proves nothing.
    assert not _observe(host, WELL)
    assert _free(host) == (1,)
    with pytest.raises(PlacementConflict):
        _place(host)
    assert _observe(host, WELL, seen=[0])
    assert _free(host) == (0, 1)


def test_a_device_that_is_not_clean_at_that_look_stays_out_and_says_why(host: Database) -> None:
    _close(host, _place(host))
    assert _observe(host, TAKEN, seen=[0])
    with host.read() as session:
        reasons = [one.device.unfit_reason for one in hosts.all_hosts(session)[0].devices]
    assert reasons == [TAKEN[0].residue] * 2
    assert UNSEEN not in reasons


def test_a_device_that_nobody_can_look_at_is_free_at_once(database: Database) -> None:
    with database.write() as session:
        hosts.register(session, "npu-07", device_type="npu", device_names=["a"], boot_id="1", versions={})
    _close(database, _place(database))
    assert _free(database) == (0,)


def test_a_broken_device_is_cordoned_once(host: Database) -> None:
    attempt_id = _place(host)
    told: list[int] = []
    for why in ("first", "second"):
        with host.write() as session:
            attempt = attempts.get(session, attempt_id)
            job = jobs.touch(session, attempt.job_id)
            device_health.cordon_broken(session, job, attempt, index=0, why=why)
            told.append(job.num_events)
    assert told[0] == told[1]
    assert _usable(host) == (1,)


def test_a_host_that_cannot_look_any_more_keeps_nobody_waiting_for_it(host: Database) -> None:
    _close(host, _place(host))
    assert _observe(host, [Reading(0), Reading(1)])
    assert _free(host) == (0, 1)
