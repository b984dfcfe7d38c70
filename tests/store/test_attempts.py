from __future__ import annotations

from collections.abc import Callable

import pytest

from store import attempts, checkpoints, events, hosts, jobs, planning_queue
from store.db import Database
from store.errors import LeaseLost, PlacementConflict
from store.models import Attempt
from store.states import AttemptStatus, DeviceState, ExitReason, HostStatus, Intent, JobStatus
from store.usage import Usage

Submit = Callable[[], str]


def states_of(database: Database) -> list[DeviceState]:
    with database.read() as session:
        return [view.device.state for view in hosts.all_hosts(session)[0].devices]


def close(database: Database, attempt: Attempt, reason: ExitReason, *, clean: bool = True) -> None:
    with database.write() as session:
        attempts.close(session, attempt.id, job_id=attempt.job_id, reason=reason, message="why", devices_clean=clean)


def test_placing_takes_all_devices_or_none(database: Database, running: Attempt, submit: Submit) -> None:
    job_id = submit()
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, job_id, host="a", device_indices=[1, 2])
    assert states_of(database) == [DeviceState.HELD, DeviceState.HELD, DeviceState.FREE, DeviceState.FREE]
    with database.read() as session:
        assert jobs.get(session, job_id).status is JobStatus.QUEUED
        assert attempts.newest(session, job_id) is None


@pytest.mark.parametrize("indices", [[3, 4], [2, 2]])
def test_devices_that_are_not_there_are_not_placed_on(
    database: Database, host: str, submit: Submit, indices: list[int]
) -> None:
    job_id = submit()
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, job_id, host=host, device_indices=indices)


def test_a_draining_host_takes_nothing(database: Database, host: str, submit: Submit) -> None:
    job_id = submit()
    with database.write() as session:
        hosts.leave(session, host)
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, job_id, host=host, device_indices=[0, 1])


def test_success_frees_the_devices_and_keeps_the_result(database: Database, running: Attempt) -> None:
    with database.write() as session:
        attempts.close(
            session,
            running.id,
            job_id=running.job_id,
            reason=ExitReason.COMPLETED,
            message=None,
            result={"perplexity": 3.0},
            devices_clean=True,
        )
    with database.read() as session:
        job, attempt = jobs.get(session, running.job_id), attempts.get(session, running.id)
    assert (job.status, job.result, attempt.status) == (
        JobStatus.SUCCEEDED,
        {"perplexity": 3.0},
        AttemptStatus.SUCCEEDED,
    )
    assert job.finished_at is not None
    assert states_of(database) == [DeviceState.FREE] * 4


def test_devices_nobody_looked_at_stay_out_of_use(database: Database, running: Attempt, submit: Submit) -> None:
    close(database, running, ExitReason.LEASE_EXPIRED, clean=False)
    assert states_of(database)[:2] == [DeviceState.UNVERIFIED] * 2
    job_id = submit()
    with pytest.raises(PlacementConflict), database.write() as session:
        attempts.place(session, job_id, host="a", device_indices=[0, 1])
    with database.write() as session:
        assert list(hosts.in_doubt(session, "a", DeviceState.UNVERIFIED)) == [running.id]
        hosts.free(session, running.id)
    assert states_of(database) == [DeviceState.FREE] * 4


def test_a_holder_that_was_closed_can_write_nothing(database: Database, running: Attempt) -> None:
    close(database, running, ExitReason.LEASE_EXPIRED)
    for stale in (
        lambda s: attempts.renew(s, running.id, job_id=running.job_id),
        lambda s: attempts.begin(s, running.id, job_id=running.job_id, boot_id="b"),
        lambda s: attempts.close(
            s, running.id, job_id=running.job_id, reason=ExitReason.COMPLETED, message=None, devices_clean=True
        ),
    ):
        with pytest.raises(LeaseLost), database.write() as session:
            stale(session)
    with database.read() as session:
        job = jobs.get(session, running.job_id)
    assert (job.status, job.strikes, job.retry_delay_s) == (JobStatus.QUEUED, 1, 10.0)


def test_only_one_supervisor_begins_an_attempt(database: Database, running: Attempt) -> None:
    with pytest.raises(LeaseLost), database.write() as session:
        attempts.begin(session, running.id, job_id=running.job_id, boot_id="b")


def test_renewing_counts_the_beat_up_and_tells_the_intent(database: Database, running: Attempt) -> None:
    with database.read() as session:
        before = attempts.beats(session)[running.id][2]
    with database.write() as session:
        jobs.cancel(session, running.job_id)
    with database.write() as session:
        assert attempts.renew(session, running.id, job_id=running.job_id).intent is Intent.CANCEL
    with database.read() as session:
        assert attempts.beats(session)[running.id] == (running.job_id, "a", before + 1)


def test_a_checkpoint_forgives_the_strikes(database: Database, running: Attempt) -> None:
    close(database, running, ExitReason.INFRA)
    with database.write() as session:
        second = attempts.place(session, running.job_id, host="a", device_indices=[0, 1])
    with database.write() as session:
        job = attempts.begin(session, second.id, job_id=second.job_id, boot_id="b")
        assert job.strikes == 1
        checkpoints.publish(session, job, attempt_id=second.id, step=10, dir="step-10", manifest_sha256="0" * 64)
    with database.read() as session:
        assert jobs.get(session, running.job_id).strikes == 0
        assert [checkpoint.step for checkpoint in checkpoints.newest_first(session, running.job_id)] == [10]


def test_a_preempted_job_waits_for_its_next_attempt_with_the_intent_to_run(
    database: Database, running: Attempt
) -> None:
    with database.write() as session:
        jobs.preempt(session, running.job_id, why="drain")
    close(database, running, ExitReason.PREEMPTED)
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert (job.status, job.intent, job.strikes) == (JobStatus.QUEUED, Intent.RUN, 0)
        assert [one.job.id for one in planning_queue.read(session, Usage()).waiting] == [job.id]


def test_a_new_attempt_does_not_show_the_last_ones_progress(database: Database, running: Attempt) -> None:
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        jobs.progress(session, job, step=29, total_steps=50, phase="train", eta_s=3.0)
    close(database, running, ExitReason.INFRA)
    with database.write() as session:
        attempts.place(session, running.job_id, host="a", device_indices=[0, 1])
    with database.read() as session:
        job = jobs.get(session, running.job_id)
    assert (job.step, job.phase, job.eta_s) == (None, None, None)


def test_the_timeline_tells_the_whole_life(database: Database, running: Attempt) -> None:
    close(database, running, ExitReason.USER_ERROR)
    with database.read() as session:
        rows = events.page(session, running.job_id)
    assert [event.kind for event in rows] == [
        "submitted",
        "status",
        "placed",
        "attempt_started",
        "attempt_closed",
        "status",
    ]
    assert [event.seq for event in rows] == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_registers_again_keeps_what_is_held(database: Database, running: Attempt) -> None:
    with database.write() as session:
        hosts.leave(session, "a")
        hosts.register(session, "a", device_type="cpu", device_names=["slot"], boot_id="boot-2", versions={})
    with database.read() as session:
        view = hosts.all_hosts(session)[0]
    assert view.host.status is HostStatus.ONLINE
    assert [(one.device.index, one.device.state, one.job_id) for one in view.devices] == [
        (0, DeviceState.HELD, running.job_id),
        (1, DeviceState.HELD, running.job_id),
    ]
