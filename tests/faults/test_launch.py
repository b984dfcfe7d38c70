"""Launches cut short (F13), messages that come too often (F14), clocks that jump (F15), new code under an old supervisor (F34)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from store import attempts
from store.celery_app import Sender, app
from store.models import Attempt
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.conftest import calm
from tests.faults.plane import ROOT, Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings

PARTS = ("api", "worker", "worker.forkserver.server", "tests.fake_trainer")
ROOMS = ("store", "worker", "trainer", "tests")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """Two hosts, and wall clocks that can be set."""
    root = tmp_path_factory.mktemp("plane")
    with planes.running(
        root,
        timings,
        devices={"a": 2, "b": 4},
        template=sqlite_template,
        switches=("clocks",),
        variables=calm(timings),
    ) as plane:
        yield plane


def test_f15_wall_clocks_that_jump_change_nothing(plane: Plane, gate: Path) -> None:
    job_id = plane.submit(lesson(hold_at=30, gate=gate))
    programs.until_step(plane, job_id, 30)
    for offset_s in (3600, -3600):
        for part in PARTS:
            plane.switch(f"clock {part}", str(offset_s))
        beat = _beat(plane, job_id)
        plane.until(lambda beat=beat: _beat(plane, job_id) >= beat + 6, "its lease is renewed", stated_s=60)
        other = plane.submit(lesson(10))
        job = programs.until_ended(plane, other)
        assert job["status"] == "succeeded"
        assert abs(_seconds_between(plane.client.job(job_id)["created_at"], job["created_at"]) - offset_s) < 600
    gate.touch()
    job = programs.until_ended(plane, job_id)
    for part in PARTS:
        plane.switch(f"clock {part}", None)
    assert job["status"] == "succeeded"
    assert all(one["exit_reason"] not in ("lease_expired", "hung") for one in plane.client.attempts(job_id))


def test_f13_a_worker_that_comes_back_launches_what_was_placed(plane: Plane) -> None:
    with injections.frozen(injections.launcher_of(plane, "a")):
        job_id = plane.submit(lesson(10))
        plane.until(lambda: plane.client.job(job_id)["attempt"], "it is placed", stated_s=10)
        injections.kill_worker(plane, "a")
    plane.start()
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def test_f14_the_same_messages_a_hundred_times(plane: Plane, gate: Path) -> None:
    sender = Sender(app(plane.settings.broker_url))
    job_id = plane.submit(lesson(hold_at=5, gate=gate))
    for _ in range(50):
        plane.until(sender.schedule, "a message is taken", stated_s=10)
    programs.until_step(plane, job_id, 5)
    with plane.database.read() as session:
        attempt = attempts.newest(session, job_id)
    assert attempt is not None
    for _ in range(100):
        for host in ("a", "b"):
            plane.until(lambda host=host: sender.launch(host, attempt.id), "a message is taken", stated_s=10)
    # What comes after them is done after them.
    assert programs.until_ended(plane, plane.submit(lesson(5)))["status"] == "succeeded"
    assert len(injections.ranks_of(plane, job_id)) == 1
    gate.touch()
    job = programs.until_ended(plane, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)
    assert plane.client.kinds(job_id).count("attempt_started") == 1


@pytest.fixture
def copied(tmp_path: Path, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """A plane whose worker runs from a copy of the code."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / "code" / room, ignore=shutil.ignore_patterns("__pycache__"))
    search = f"{tmp_path / 'plane' / 'inject'}:{tmp_path / 'code'}"
    with planes.running(
        tmp_path / "plane",
        timings,
        devices={"a": 2},
        template=sqlite_template,
        part_variables={"worker a": {"PYTHONPATH": search}},
    ) as plane:
        yield plane


def test_f34_the_workers_code_is_replaced_under_a_running_job(copied: Plane, tmp_path: Path, gate: Path) -> None:
    """Its supervisor needs nothing from the disk any more: it finishes while every module there is another."""
    job_id = copied.submit(lesson(hold_at=30, gate=gate), num_devices=2)
    programs.until_saved(copied, job_id)
    modules = [path for room in ("store", "worker") for path in (tmp_path / "code" / room).rglob("*.py")]
    before = {path: path.read_text() for path in modules}
    injections.kill_worker(copied)
    for path in modules:
        path.write_text("raise ImportError('this is the new version')\n")
    gate.touch()
    assert programs.until_ended(copied, job_id)["status"] == "succeeded"
    for path, text in before.items():
        path.write_text(text)
    copied.start()
    assert programs.until_ended(copied, copied.submit(lesson(5)))["status"] == "succeeded"
    assert copied.client.job(job_id)["attempt"]["number"] == 1


def _beat(plane: Plane, job_id: str) -> int:
    with plane.database.read() as session:
        return (
            session.scalars(
                select(Attempt.beat).where(Attempt.job_id == job_id).order_by(Attempt.number.desc())
            ).first()
            or 0
        )


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
