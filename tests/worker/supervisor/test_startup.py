"""Before the ranks run: the lease is kept while files are read, and a reply that is lost changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

from store import attempts, checkpoints, hosts
from store.errors import LeaseLost
from store.models import Attempt, Checkpoint
from store.pubsub import Notifier
from store.settings import Settings
from store.states import AttemptStatus, ExitReason, Intent, JobStatus
from tests.worker.ingest.test_writer import Flaky
from worker.supervisor import resumption, startup
from worker.supervisor.resumption import Interrupted
from worker.supervisor.startup import Launch

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


def _checkpoint(directory: Path, step: int) -> Checkpoint:
    directory.mkdir(parents=True)
    data = bytes([step]) * 3_000_000
    (directory / "weights").write_bytes(data)
    files = {"weights": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest = json.dumps({"format": 1, "step": step, "files": files}).encode()
    (directory / "manifest.json").write_bytes(manifest)
    return Checkpoint(step=step, dir=str(directory), manifest_sha256=hashlib.sha256(manifest).hexdigest())


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "weights").write_bytes(b""),
        lambda directory: (directory / "weights").unlink(),
        lambda directory: (directory / "weights").write_bytes(bytes([2]) * 2_999_999 + b"!"),
        lambda directory: (directory / "manifest.json").write_text("{}"),
        lambda directory: (directory / "manifest.json").unlink(),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    rows = [_checkpoint(tmp_path / f"step-{step}", step) for step in (3, 2, 1)]
    (tmp_path / "step-3").rename(tmp_path / "pruned")
    damage(tmp_path / "step-2")
    choice = resumption.choose(rows, is_over=lambda: False)
    assert (choice.found, choice.corrupt, choice.missing) == (rows[2], [rows[1]], rows[0])


def test_reading_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    looks = iter([False, True])
    with pytest.raises(Interrupted):
        resumption.choose([_checkpoint(tmp_path / "step-1", 1)], is_over=lambda: next(looks))


@pytest.fixture
def placed(plane: Plane) -> Attempt:
    """An attempt with a checkpoint to go on from, not begun."""
    row = _checkpoint(plane.settings.jobs_dir / "earlier" / "step-1", 1)
    with plane.database.write() as session:
        hosts.register(session, "testhost", device_type="cpu", device_names=["slot"], boot_id="1", versions={})
    job_id = plane.submit([{"do": "succeed"}])
    with plane.database.write() as session:
        first = attempts.place(session, job_id, host="testhost", device_indices=[0])
        job = attempts.begin(session, first.id, job_id=job_id, boot_id="1")
        checkpoints.publish(session, job, attempt_id=first.id, step=1, dir=row.dir, manifest_sha256=row.manifest_sha256)
        attempts.close(session, first.id, job_id=job_id, reason=ExitReason.PREEMPTED, message=None, devices_clean=True)
    with plane.database.write() as session:
        return attempts.place(session, job_id, host="testhost", device_indices=[0])


class Reading:
    """A checkpoint whose verification takes as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.may_end, self.was_over = threading.Event(), threading.Event(), threading.Event()
        monkeypatch.setattr(resumption, "verifies", self._verify)

    def _verify(self, _directory: Path, _digest: str, *, is_over: Callable[[], bool]) -> bool:
        self.began.set()
        while not self.may_end.wait(0.01):
            if is_over():
                self.was_over.set()
                raise Interrupted
        return True


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(monkeypatch)


def _open(plane: Plane, attempt: Attempt) -> threading.Thread:
    request = Launch.of(attempt, cpu_threads=1, simulated=False)
    run_dir = plane.run_dir(attempt.job_id, attempt.number)
    run_dir.mkdir(parents=True)
    opening = startup.Opening(plane.settings, request, run_dir, plane.database, Notifier("unix:///nowhere"))

    def own() -> None:
        with suppress(LeaseLost):
            opening.own()

    thread = threading.Thread(target=own, daemon=True)
    thread.start()
    return thread


def test_the_lease_is_kept_while_a_checkpoint_is_read_and_a_cancel_ends_it(
    plane: Plane, placed: Attempt, reading: Reading
) -> None:
    thread = _open(plane, placed)
    assert reading.began.wait(30)
    beat = plane.attempt(placed.job_id).beat
    plane.eventually(lambda: plane.attempt(placed.job_id).beat >= beat + 3)
    plane.cancel(placed.job_id)
    thread.join(30)
    assert reading.was_over.is_set()
    assert plane.job(placed.job_id).status is JobStatus.CANCELLED
    assert not (plane.run_dir(placed.job_id, 2) / "config.json").exists()


def test_a_lease_that_is_lost_meanwhile_starts_no_rank(plane: Plane, placed: Attempt, reading: Reading) -> None:
    thread = _open(plane, placed)
    assert reading.began.wait(30)
    with plane.database.write() as session:
        attempts.close(
            session, placed.id, job_id=placed.job_id, reason=ExitReason.LEASE_EXPIRED, message="", devices_clean=True
        )
    thread.join(30)
    assert not thread.is_alive()
    assert reading.was_over.is_set()
    assert plane.ranks(placed.job_id) == []
    assert not (plane.run_dir(placed.job_id, 2) / "config.json").exists()


def test_a_begin_whose_reply_is_lost_is_begun(plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10: tried again, it finds the attempt begun, and knows that it was itself."""
    flaky = Flaky(plane.settings.db_url)
    request = Launch.of(placed, cpu_threads=1, simulated=False)
    opening = startup.Opening(
        plane.settings, request, plane.run_dir(placed.job_id, 2), flaky, Notifier("unix:///nowhere")
    )
    monkeypatch.setattr(startup, "RETRY_S", 0.01)
    flaky.next = "after"
    ledger = opening.ledger()
    assert opening.begin(ledger).intent is Intent.RUN
    assert plane.attempt(placed.job_id).status is AttemptStatus.RUNNING
    assert plane.kinds(placed.job_id).count("attempt_started") == 2
    time.sleep(0.05)
    ledger.commit()
    assert plane.attempt(placed.job_id).ran_s >= 0.05, "its time counts from when it asked to begin"
    # Another one who comes later has not begun it.
    with pytest.raises(LeaseLost):
        opening.begin(opening.ledger())
    flaky.dispose()


def _opening(plane: Plane, attempt: Attempt, **changes: object) -> startup.Opening:
    settings = Settings(**{**plane.settings.model_dump(), **changes})
    run_dir = plane.run_dir(attempt.job_id, attempt.number)
    run_dir.mkdir(parents=True, exist_ok=True)
    request = Launch.of(attempt, cpu_threads=1, simulated=False)
    return startup.Opening(settings, request, run_dir, plane.database, Notifier("unix:///nowhere"))


def test_who_stood_still_past_its_lease_starts_no_rank(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F12, between the last look at the lease and the first rank."""
    opening = _opening(plane, placed)
    prepare = startup.run_config.prepare

    def stand_still(*args: Any, **named: Any) -> object:
        choice = prepare(*args, **named)
        _lose(plane, placed)
        now = startup.proc.boottime()
        monkeypatch.setattr(startup.proc, "boottime", lambda: now + opening._settings.lease_s)
        return choice

    monkeypatch.setattr(startup.Opening, "_tell", lambda *_: None)
    monkeypatch.setattr(startup.run_config, "prepare", stand_still)
    monkeypatch.setattr(startup.ranks, "start", lambda *_args, **_named: pytest.fail("ranks were started"))
    assert _own(opening) == startup.LOST


def _own(opening: startup.Opening) -> int:
    """In a process of its own, as it is to be: it becomes a subreaper, and may end whatever is below it."""
    opening._database.dispose()
    pid = os.fork()
    if pid == 0:
        code = startup.FAILED
        try:
            code = opening.own()
        except LeaseLost:
            code = startup.LOST
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _lose(plane: Plane, attempt: Attempt) -> None:
    with plane.database.write() as session:
        attempts.close(
            session,
            attempt.id,
            job_id=attempt.job_id,
            reason=ExitReason.LEASE_EXPIRED,
            message="",
            devices_clean=True,
        )


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, ExitReason.STORAGE), (errno.EAGAIN, ExitReason.LAUNCH_ERROR)],
    ids=["full disk", "no process"],
)
def test_a_host_that_cannot_start_ranks_says_why_and_leaves_none(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch, number: int, reason: ExitReason
) -> None:
    spawned = plane.settings.data_dir / "pid"
    spawn = startup.ranks._spawn

    def fail_at_second(*args: Any) -> int:
        if spawned.exists():
            raise OSError(number, os.strerror(number))
        pid = spawn(*args)
        spawned.write_text(str(pid))
        return pid

    monkeypatch.setattr(startup.ranks, "_spawn", fail_at_second)
    opening = _opening(plane, placed)
    two = replace(opening._launch, devices=(0, 1))
    monkeypatch.setattr(opening, "_launch", two)
    assert _own(opening) == startup.DONE
    closed = plane.attempt(placed.job_id)
    assert (closed.exit_reason, closed.number) == (reason, 2)
    assert os.strerror(number) in (closed.message or "")
    assert plane.settings.host_name in (closed.message or "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(spawned.read_text()), 0)


def test_a_database_that_stays_away_costs_the_launch_before_the_lease_ends(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where other hosts share the database."""
    changes = {"database_url": "sqlite:////elsewhere/longyard.db", "lease_s": 0.5}
    shared = Settings(**{**plane.settings.model_dump(), **changes})
    assert (plane.settings.is_local, shared.is_local) == (True, False)
    flaky = Flaky(plane.settings.db_url)
    monkeypatch.setattr(startup, "RETRY_S", 0.01)
    monkeypatch.setattr(Flaky, "write", Flaky.write_never)
    request = Launch.of(placed, cpu_threads=1, simulated=False)
    opening = startup.Opening(shared, request, plane.run_dir(placed.job_id, 2), flaky, Notifier("unix:///nowhere"))
    with pytest.raises(OperationalError):
        opening.begin(opening.ledger())
    flaky.dispose()
