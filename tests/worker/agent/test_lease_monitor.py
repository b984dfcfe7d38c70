"""Judging leases: by watching a beat stand still, never by a clock that somebody else has set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import Session

from linux import proc
from store import attempts, hosts, jobs, leadership
from store.jobs import NewJob
from store.models import Attempt
from store.settings import Settings
from store.states import AttemptStatus, DeviceState, ExitReason, HostStatus, JobStatus
from worker.agent.lease_monitor import Sweeper

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The judge's clock, in the test's hand."""
    clock = [1000.0]
    monkeypatch.setattr(proc, "boottime", lambda: clock[0])
    return clock


@pytest.fixture
def away(plane: Plane) -> Attempt:
    """A running attempt on another host than the judge's."""
    with plane.database.write() as session:
        hosts.register(session, "away", device_type="cpu", device_names=["slot"], boot_id="1", versions={})
        job_id = jobs.submit(session, NewJob("far", "demo", {}, 1, "cpu"), owner="admin")[0].id
    with plane.database.write() as session:
        attempt = attempts.place(session, job_id, host="away", device_indices=[0])
    with plane.database.write() as session:
        attempts.begin(session, attempt.id, job_id=job_id, boot_id="1")
    return attempt


def test_a_beat_that_stands_still_for_the_lease_is_over(plane: Plane, now: list[float], away: Attempt) -> None:
    sweeper = Sweeper(plane.settings, plane.database)
    while now[0] < 1000 + plane.settings.lease_s:
        assert sweeper.sweep() == []
        now[0] += 1.0
    (expired,) = sweeper.sweep()
    assert expired.attempt_id == away.id
    closed = plane.attempt(away.job_id)
    assert (closed.status, closed.exit_reason) == (AttemptStatus.LOST, ExitReason.LEASE_EXPIRED)
    assert plane.job(away.job_id).status is JobStatus.QUEUED
    with plane.database.read() as session:
        (view,) = hosts.all_hosts(session)
    assert view.host.status is HostStatus.LOST
    assert view.devices[0].device.state is DeviceState.UNVERIFIED


def test_a_beat_that_moves_is_alive_however_slowly(plane: Plane, now: list[float], away: Attempt) -> None:
    sweeper = Sweeper(plane.settings, plane.database)
    for _ in range(12):
        assert sweeper.sweep() == []
        now[0] += 1.0
        if now[0] % 2 == 0:
            with plane.database.write() as session:
                attempts.renew(session, away.id, job_id=away.job_id)
    assert plane.attempt(away.job_id).status is AttemptStatus.RUNNING


def test_a_renewal_after_the_last_look_saves_it(
    plane: Plane, now: list[float], away: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge reads the beats; the supervisor renews; the judge closes: it must find out."""
    sweeper = Sweeper(plane.settings, plane.database)
    sweeper.sweep()
    for _ in range(3):
        now[0] += 0.9
        sweeper.sweep()
    read = attempts.beats

    def read_then_renew(session: Session, *, host: str | None) -> dict[str, tuple[str, str, int]]:
        found = read(session, host=host)
        with plane.database.write() as other:
            attempts.renew(other, away.id, job_id=away.job_id)
        return found

    monkeypatch.setattr(attempts, "beats", read_then_renew)
    now[0] += 0.9
    assert sweeper.sweep() == []
    assert plane.attempt(away.job_id).status is AttemptStatus.RUNNING
    assert not sweeper.is_stuck(away.id, plane.attempt(away.job_id).beat)


def test_a_judge_that_could_not_watch_begins_again(plane: Plane, now: list[float], away: Attempt) -> None:
    sweeper = Sweeper(plane.settings, plane.database)
    assert sweeper.sweep() == []
    now[0] += 1000.0
    assert sweeper.sweep() == []
    assert plane.attempt(away.job_id).status is AttemptStatus.RUNNING


def test_one_judge_at_a_time_and_a_dead_one_is_followed(plane: Plane, now: list[float], away: Attempt) -> None:
    first = Sweeper(plane.settings, plane.database)
    second = Sweeper(Settings(**{**plane.settings.model_dump(), "host_name": "second"}), plane.database)
    first.sweep()
    second.sweep()
    assert (first.has_role, second.has_role) == (True, False)
    while not second.has_role:
        now[0] += 1.0
        second.sweep()
        assert now[0] < 1010
    assert now[0] >= 1000 + plane.settings.lease_s
    first.sweep()
    assert not first.has_role
    second.leave()
    with plane.database.write() as session:
        assert leadership.take(session, leadership.SWEEP, holder="third").holder == "third"
