"""Kills of every part around a running attempt: nothing lost, nothing twice, nobody left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from linux import proc
from store import attempts, hosts, jobs, states
from store.errors import LeaseLost
from store.models import Device
from store.states import AttemptStatus, DeviceState, ExitReason, HostStatus, JobStatus
from tests.worker.processes import is_running

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


def test_a_killed_supervisor_is_closed_and_its_job_requeued(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit(
        [
            {"do": "count", "first": 1, "last": 5},
            {"do": "checkpoint", "step": 5},
            {"do": "say", "text": "saved"},
            {"do": "wait_for_stop"},
        ]
    )
    plane.until_log(job_id, b"saved")
    plane.eventually(lambda: "checkpoint" in plane.kinds(job_id))
    first, supervisor = plane.attempt(job_id), plane.supervisor(job_id)
    (rank,) = plane.ranks(job_id)
    proc.send([supervisor], signal.SIGKILL)
    plane.until_status(job_id, JobStatus.QUEUED)
    assert not is_running(rank)
    closed = plane.attempt(job_id)
    assert closed.id == first.id
    assert closed.exit_reason is ExitReason.INFRA
    assert closed.message == "its supervisor was killed by SIGKILL"
    # What the rank said after its supervisor's death was drained before the close.
    assert plane.log(job_id).endswith(b"stopped\n")
    assert plane.series(job_id, "loss") == [(step, float(step)) for step in range(1, 6)]
    plane.assert_clean(job_id)
    assert plane.job(job_id).retry_delay_s == states.FIRST_DELAY_S


def test_a_broken_checkpoint_is_told_and_passed_over(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit(
        [
            {"do": "tell_config"},
            {"do": "checkpoint", "step": 5},
            {"do": "checkpoint", "step": 9, "broken": True},
            {"do": "say", "text": "saved"},
            {"do": "wait_for", "path": str(plane.flags / "go")},
            {"do": "succeed"},
        ]
    )
    plane.eventually(lambda: plane.kinds(job_id).count("checkpoint") == 2)
    with plane.database.write() as session:
        jobs.preempt(session, job_id, why="the test")
    plane.eventually(lambda: plane.job(job_id).num_attempts == 2)
    (plane.flags / "go").touch()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    corrupt = [event.data["step"] for event in plane.events(job_id) if event.kind == "checkpoint_corrupt"]
    assert corrupt == [9]
    assert str(plane.run_dir(job_id) / "checkpoints" / "step-5") in plane.log(job_id).decode()
    assert plane.job(job_id).strikes == 0


def test_a_checkpoint_that_is_gone_is_told(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit(
        [
            {"do": "tell_config"},
            {"do": "checkpoint", "step": 5},
            {"do": "checkpoint", "step": 9},
            {"do": "wait_for", "path": str(plane.flags / "go")},
            {"do": "succeed"},
        ]
    )
    plane.eventually(lambda: plane.kinds(job_id).count("checkpoint") == 2)
    shutil.rmtree(plane.run_dir(job_id) / "checkpoints" / "step-9")
    with plane.database.write() as session:
        jobs.preempt(session, job_id, why="the test")
    plane.eventually(lambda: plane.job(job_id).num_attempts == 2)
    (plane.flags / "go").touch()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    told = [(event.kind, event.data.get("step")) for event in plane.events(job_id)]
    assert ("checkpoint_missing", 9) in told
    assert str(plane.run_dir(job_id) / "checkpoints" / "step-5") in plane.log(job_id).decode()


def test_a_killed_worker_and_launcher_cost_the_job_nothing(plane: Plane) -> None:
    plane.start()
    go, more = plane.flags / "go", plane.flags / "more"
    job_id = plane.submit(
        [
            {"do": "count", "first": 1, "last": 3},
            {"do": "wait_for", "path": str(more)},
            {"do": "count", "first": 4, "last": 6},
            {"do": "wait_for", "path": str(go)},
            {"do": "succeed"},
        ]
    )
    plane.until_log(job_id, b"step 3")
    supervisor = plane.supervisor(job_id)
    plane.kill_worker()
    more.touch()
    plane.until_log(job_id, b"step 6")
    plane.start()
    assert plane.supervisor(job_id) == supervisor
    queued = plane.submit([{"do": "succeed"}])
    assert plane.until_ended(queued).status is JobStatus.SUCCEEDED, (
        "the new worker launches while it follows the old attempt"
    )
    go.touch()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert plane.attempt(job_id).number == 1
    assert plane.series(job_id, "loss") == [(step, float(step)) for step in range(1, 7)]
    assert plane.log(job_id) == (plane.run_dir(job_id) / "r0.log").read_bytes()
    plane.assert_clean(job_id)


def test_everything_killed_at_once_is_found_at_the_next_start(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit([{"do": "fork_loader"}, {"do": "say", "text": "up"}, {"do": "ignore_stop"}, {"do": "hang"}])
    plane.until_log(job_id, b"ignoring")
    supervisor, ranks = plane.supervisor(job_id), plane.ranks(job_id)
    plane.kill_worker()
    proc.send([supervisor], signal.SIGKILL)
    plane.start()
    plane.until_status(job_id, JobStatus.QUEUED)
    assert not any(is_running(pid) for pid in ranks)
    assert plane.attempt(job_id).message == "its supervisor is gone"
    plane.assert_clean(job_id)


def test_a_killed_launcher_is_replaced(plane: Plane) -> None:
    plane.start()
    first = plane.launcher()
    proc.send([first], signal.SIGKILL)
    job_id = plane.submit([{"do": "succeed"}])
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert plane.launcher() != first


def test_a_supervisor_whose_attempt_was_closed_by_others_ends_its_ranks(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "ignore_stop"}, {"do": "hang"}])
    plane.until_log(job_id, b"up")
    attempt, ranks, supervisor = plane.attempt(job_id), plane.ranks(job_id), plane.supervisor(job_id)
    with plane.database.write() as session:
        jobs.cancel(session, job_id)
        attempts.close(
            session,
            attempt.id,
            job_id=job_id,
            reason=ExitReason.LEASE_EXPIRED,
            message="closed by the test",
            devices_clean=False,
        )
    plane.eventually(lambda: not any(is_running(pid) for pid in [*ranks, supervisor]))
    plane.eventually(lambda: {device.state for device in _devices(plane)} == {DeviceState.FREE})
    assert plane.attempt(job_id).message == "closed by the test"
    with plane.database.write() as session, pytest.raises(LeaseLost):
        attempts.renew(session, attempt.id, job_id=job_id)


def test_a_stopped_supervisor_loses_its_lease_and_everything_of_it_is_ended(plane: Plane) -> None:
    plane.start()
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "hang"}])
    plane.until_log(job_id, b"up")
    ranks, supervisor = plane.ranks(job_id), plane.supervisor(job_id)
    proc.send([supervisor], signal.SIGSTOP)
    plane.until_status(job_id, JobStatus.QUEUED)
    assert not any(is_running(pid) for pid in [*ranks, supervisor])
    plane.assert_clean(job_id)


def test_training_goes_on_while_the_database_is_locked_for_longer_than_a_lease(plane: Plane) -> None:
    """F9 on one machine: whoever could judge the attempt shares the supervisor's locks, so nobody has to be afraid of it."""
    plane.start()
    locked, released = plane.flags / "locked", plane.flags / "released"
    job_id = plane.submit(
        [
            {"do": "count", "first": 1, "last": 3},
            {"do": "wait_for", "path": str(locked)},
            {"do": "count", "first": 4, "last": 50},
            {"do": "checkpoint", "step": 50},
            {"do": "wait_for", "path": str(released)},
            {"do": "succeed"},
        ]
    )
    plane.until_log(job_id, b"step 3\n")
    (rank,), supervisor = plane.ranks(job_id), plane.supervisor(job_id)
    log = plane.run_dir(job_id) / "r0.log"
    with plane.database.write() as session:
        # Nobody else can write while this transaction is open.
        hosts.beat(session, plane.settings.host_name)
        locked.touch()
        plane.eventually(lambda: b"step 50\n" in log.read_bytes())
        end = proc.boottime() + 1.5 * plane.settings.lease_s
        plane.eventually(lambda: proc.boottime() > end)
        assert (is_running(rank), plane.supervisor(job_id)) == (True, supervisor)
    plane.until_log(job_id, b"step 50\n")
    released.touch()
    job = plane.until_ended(job_id)
    assert (job.status, job.num_attempts, job.strikes) == (JobStatus.SUCCEEDED, 1, 0)
    assert plane.series(job_id, "loss") == [(step, float(step)) for step in range(1, 51)]
    assert plane.log(job_id) == log.read_bytes()
    assert plane.kinds(job_id).count("checkpoint") == 1
    plane.assert_clean(job_id)


def test_a_stuck_supervisor_of_another_host_of_this_machine_is_left_to_it(plane: Plane) -> None:
    """Two workers on one data directory: only the host's own may end what still lives, and it closes nothing before it has."""
    plane.start()
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "wait_for_stop", "save": 4}])
    plane.until_log(job_id, b"up")
    ranks, supervisor = plane.ranks(job_id), plane.supervisor(job_id)
    plane.kill_worker()
    proc.send([supervisor], signal.SIGSTOP)
    # The other one takes the role and judges.
    plane.start(LONGYARD_HOST_NAME="neighbour")
    plane.eventually(lambda: _status(plane, "testhost") is HostStatus.LOST)
    end = proc.boottime() + plane.settings.lease_s
    plane.eventually(lambda: proc.boottime() > end)
    assert plane.attempt(job_id).status is AttemptStatus.RUNNING
    assert all(is_running(pid) for pid in [*ranks, supervisor])
    # A grace that ends with the ranks' own end: on a busy machine they may need longer to save than the test's short one.
    plane.start(LONGYARD_STOP_GRACE_S="60")
    plane.eventually(lambda: plane.attempt(job_id).status is AttemptStatus.LOST)
    assert not any(is_running(pid) for pid in [*ranks, supervisor])
    assert "checkpoint" in plane.kinds(job_id), "its ranks were given the time to save"
    assert plane.attempt(job_id).exit_reason is ExitReason.LEASE_EXPIRED


def test_a_drain_checkpoints_and_the_next_start_resumes(plane: Plane) -> None:
    worker = plane.start(LONGYARD_STOP_GRACE_S="60")
    job_id = plane.submit(
        [{"do": "tell_config"}, {"do": "say", "text": "up"}, {"do": "wait_for_stop", "save": 4}], num_devices=2
    )
    plane.until_log(job_id, b"up")
    plane.until_log(job_id, b"up", rank=1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    job, attempt = plane.job(job_id), plane.attempt(job_id)
    assert (job.status, job.strikes) == (JobStatus.QUEUED, 0)
    assert (attempt.status, attempt.exit_reason) == (AttemptStatus.STOPPED, ExitReason.PREEMPTED)
    plane.assert_clean(job_id)
    with plane.database.read() as session:
        assert hosts.all_hosts(session)[0].host.status is HostStatus.DRAINING
    plane.start()
    plane.eventually(lambda: plane.job(job_id).num_attempts == 2)
    plane.until_log(job_id, b"step-4")
    resumed = json.loads((plane.run_dir(job_id, 2) / "config.json").read_bytes())["resume_from_checkpoint"]
    manifest = (plane.run_dir(job_id, 1) / "checkpoints" / "step-4" / "manifest.json").read_bytes()
    # Without the hash the trainer would trust whatever manifest it finds.
    assert resumed["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    plane.cancel(job_id)
    assert plane.until_ended(job_id).status is JobStatus.CANCELLED


def test_a_second_signal_hurries_the_drain(plane: Plane) -> None:
    worker = plane.start(LONGYARD_STOP_GRACE_S="600")
    job_id = plane.submit([{"do": "ignore_stop"}, {"do": "hang"}])
    plane.until_log(job_id, b"ignoring")
    worker.send_signal(signal.SIGTERM)
    plane.eventually(lambda: "preempt_requested" in plane.kinds(job_id))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    assert plane.job(job_id).status is JobStatus.QUEUED
    plane.assert_clean(job_id)


def _status(plane: Plane, name: str) -> HostStatus:
    with plane.database.read() as session:
        return next(view.host.status for view in hosts.all_hosts(session) if view.host.name == name)


def _devices(plane: Plane) -> list[Device]:
    with plane.database.read() as session:
        return [device.device for host in hosts.all_hosts(session) for device in host.devices]


def test_a_second_worker_of_a_host_is_refused_and_changes_nothing(plane: Plane) -> None:
    plane.start()
    refused = subprocess.run(
        [sys.executable, "-P", "-m", "worker"],
        env=plane.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (refused.returncode, "LONGYARD_HOST_NAME" in refused.stderr) == (1, True)
    with plane.database.read() as session:
        (view,) = hosts.all_hosts(session)
    assert view.host.status is HostStatus.ONLINE
