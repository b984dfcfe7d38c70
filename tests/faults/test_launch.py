"""Between a placement and a launch (F13), messages that come too often (F14), new code under an old supervisor (F34)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import attempts
from store.broker import Sender, app
from tests.faults import injections, programs
from tests.faults import plane as planes
from tests.faults.plane import ROOT, Plane, Timings
from tests.faults.programs import lesson

ROOMS = ("store", "worker", "trainer", "tests")


def test_f13_a_host_that_dies_before_it_launches(pair: Plane, gate: Path) -> None:
    """Nobody renews what nobody has begun: it is closed at the lease's end, and the job runs elsewhere."""
    with injections.frozen(injections.launcher_of(pair, "a")):
        job_id = pair.submit(lesson(10))
        pair.until(lambda: pair.client.job(job_id)["attempt"], "it is placed", stated_s=10)
        assert pair.client.job(job_id)["attempt"]["host"] == "a"
        injections.kill_worker(pair, "a")
    closed = programs.until_closed(pair, job_id, stated_s=200)
    assert (closed["exit_reason"], closed["started_at"]) == ("lease_expired", None)
    job = programs.until_ended(pair, job_id)
    assert (job["status"], job["attempt"]["host"]) == ("succeeded", "b")


def test_f13_a_worker_that_comes_back_launches_what_was_placed(pair: Plane) -> None:
    with injections.frozen(injections.launcher_of(pair, "a")):
        job_id = pair.submit(lesson(10))
        pair.until(lambda: pair.client.job(job_id)["attempt"], "it is placed", stated_s=10)
        injections.kill_worker(pair, "a")
    pair.start()
    assert programs.until_ended(pair, job_id)["status"] == "succeeded"


def test_f14_the_same_messages_a_hundred_times(pair: Plane, gate: Path) -> None:
    sender = Sender(app(pair.settings.broker_url))
    job_id = pair.submit(lesson(hold_at=5, gate=gate))
    for _ in range(50):
        pair.until(sender.schedule, "a message is taken", stated_s=10)
    programs.until_step(pair, job_id, 5)
    with pair.database.read() as session:
        attempt = attempts.newest(session, job_id)
    assert attempt is not None
    for _ in range(100):
        for host in ("a", "b"):
            pair.until(lambda host=host: sender.launch(host, attempt.id), "a message is taken", stated_s=10)
    # What comes after them is done after them.
    assert programs.until_ended(pair, pair.submit(lesson(5)))["status"] == "succeeded"
    assert len(injections.ranks_of(pair, job_id)) == 1
    gate.touch()
    job = programs.until_ended(pair, job_id)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)
    assert pair.client.kinds(job_id).count("attempt_started") == 1


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
