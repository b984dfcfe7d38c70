"""Leases of a supervisor that stands still (F12), of what was placed and never launched (F13), and while nobody can write (F9)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from linux.proc import boottime
from store.models import Lease
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings
from tests.worker.processes import is_running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """Hosts a with two devices and b with four, so that a job's size says where it runs; leases at their stated length."""
    root = tmp_path_factory.mktemp("plane")
    with planes.running(root, timings, devices={"a": 2, "b": 4}, template=sqlite_template) as plane:
        yield plane


@pytest.mark.parametrize("judge", ["its own host", "another host"])
def test_f12_a_supervisor_that_stood_still_past_its_lease(plane: Plane, gate: Path, judge: str) -> None:
    """Whoever judges, its own host ends it and its ranks before the job runs again anywhere (K3)."""
    sweeper = _sweeper(plane)
    is_on_b = (sweeper == "b") == (judge == "its own host")
    job_id = plane.submit(lesson(hold_at=30, gate=gate), num_devices=3 if is_on_b else 1)
    programs.until_saved(plane, job_id)
    supervisor, ranks = injections.supervisor_of(plane, job_id), injections.ranks_of(plane, job_id)
    with injections.frozen(supervisor, between_writes_of=plane):
        closed = programs.until_closed(plane, job_id, stated_s=150)
        plane.until(lambda: not any(map(is_running, [supervisor, *ranks.values()])), "it is ended", stated_s=10)
    assert closed["exit_reason"] in ("infra", "lease_expired")
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 2)


def test_f9_the_database_locked_for_many_leases(plane: Plane, gate: Path, count: Callable[[int, int], int]) -> None:
    """An hour, at full length. Nobody can renew and nobody can judge: training goes on to its end, and all that it wrote is there
    afterwards, once."""
    job_id = plane.submit(lesson(200, step_s=0.005, hold_at=10, gate=gate), num_devices=2)
    programs.until_step(plane, job_id, 10)
    progress = plane.run_dir(job_id) / "r0.progress"
    with injections.locked_database(plane):
        ranks = injections.ranks_of(plane, job_id).values()
        gate.touch()
        num_leases = count(60, 2)
        locked_until = boottime() + num_leases * plane.settings.lease_s
        plane.until(lambda: boottime() > locked_until, "the leases are over", stated_s=61 * num_leases)
        assert json.loads(progress.read_bytes())["step"] == 200
        assert not any(is_running(rank) for rank in ranks), "the ranks have ended, and nobody could write it"
        answer = plane.client.once("POST", "/jobs", json=plane.spec(lesson(1)))
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)


def test_f13_a_host_that_dies_before_it_launches(plane: Plane, gate: Path) -> None:
    """Nobody renews what nobody has begun: it is closed at the lease's end, and the job runs elsewhere."""
    with injections.frozen(injections.launcher_of(plane, "a")):
        job_id = plane.submit(lesson(10))
        plane.until(lambda: plane.client.job(job_id)["attempt"], "it is placed", stated_s=10)
        assert plane.client.job(job_id)["attempt"]["host"] == "a"
        injections.kill_worker(plane, "a")
    closed = programs.until_closed(plane, job_id, stated_s=200)
    assert (closed["exit_reason"], closed["started_at"]) == ("lease_expired", None)
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["host"]) == ("succeeded", "b")


def _sweeper(plane: Plane) -> str:
    def holder() -> str | None:
        with plane.database.read() as session:
            return session.scalar(select(Lease.holder))

    return plane.until(holder, "somebody sweeps", stated_s=120)
