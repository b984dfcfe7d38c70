"""What a host does about attempts without a supervisor: it asks for one, or ends what is left and frees or gives up the devices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from linux import proc
from store import attempts, hosts
from store.models import Attempt
from store.pubsub import Notifier
from store.states import AttemptStatus, DeviceState, ExitReason
from tests.worker.processes import is_running
from worker.agent import reconciler, recovery
from worker.agent.reconciler import Care
from worker.agent.recovery import Recovery
from worker.devices.inventory import Inventory
from worker.forkserver.server import Told
from worker.supervisor import run_lock
from worker.supervisor.run_lock import RunLock

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


class Deaf:
    """Takes every request, and nothing comes of it."""

    is_ready, failure = True, None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def launch(self, request: reconciler.Launch) -> bool:
        self.asked.append(request.attempt_id)
        return True


@pytest.fixture
def placed(plane: Plane) -> Attempt:
    with plane.database.write() as session:
        hosts.register(session, "testhost", device_type="cpu", device_names=["slot"], boot_id="1", versions={})
    job_id = plane.submit([{"do": "succeed"}])
    with plane.database.write() as session:
        return attempts.place(session, job_id, host="testhost", device_indices=[0])


def _care(plane: Plane, standby: object) -> Care:
    inventory = Inventory("cpu", ("slot",), {})
    notifier = Notifier("unix:///nowhere")
    return Care(plane.settings, plane.database, notifier, standby, inventory, is_stuck=lambda _key, _beat: False)  # pyright: ignore[reportArgumentType]


def test_an_attempt_that_nobody_begins_is_closed(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(proc, "boottime", lambda: clock[0])
    standby = Deaf()
    cared = _care(plane, standby)
    for _ in range(10):
        cared.follow(is_leaving=False)
        assert not cared.recover()
        clock[0] += reconciler.LEAST_PATIENCE_S / 10
    assert standby.asked == [placed.id], "it is asked once"
    clock[0] += 1.0
    cared.follow(is_leaving=False)
    assert cared.recover()
    attempt = plane.attempt(placed.job_id)
    assert (attempt.exit_reason, attempt.status) == (ExitReason.LAUNCH_ERROR, AttemptStatus.FAILED)
    assert "does not answer" in (attempt.message or "")


def test_who_could_not_look_does_not_blame_the_launcher(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(proc, "boottime", lambda: clock[0])
    cared = _care(plane, Deaf())
    cared.follow(is_leaving=False)
    clock[0] += 1000.0
    cared.follow(is_leaving=False)
    assert not cared.is_recovering


def test_a_lost_launcher_is_asked_again(plane: Plane, placed: Attempt) -> None:
    standby = Deaf()
    cared = _care(plane, standby)
    cared.follow(is_leaving=False)
    cared.hear(Told("lost"))
    cared.follow(is_leaving=False)
    assert standby.asked == [placed.id, placed.id]


HOLD = """
import sys, time
from pathlib import Path
from worker.supervisor.run_lock import RunLock
with RunLock(Path(sys.argv[1]), host="other"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_supervisors_of_another_host_on_the_same_data_are_left_alone(plane: Plane, tmp_path: Path) -> None:
    run_dir = plane.run_dir("a-job")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        _care(plane, Deaf()).signal_supervisors(signal.SIGKILL)
        run_lock.signal_supervisor(run_dir, signal.SIGKILL, host="")
        assert run_lock.holder(run_dir) == process.pid
        run_lock.signal_supervisor(run_dir, signal.SIGTERM, host="other")
        assert process.wait(timeout=30) == -signal.SIGTERM
        # The file still says who had it.
        run_lock.signal_supervisor(run_dir, signal.SIGKILL, host="other")
    finally:
        process.kill()
        process.wait()
        process.communicate()


def test_devices_in_quarantine_are_free_once_the_last_process_is_gone(
    plane: Plane, placed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that cannot be ended is simulated: SIGKILL does not reach it."""
    environment = {**os.environ, proc.ATTEMPT_VARIABLE: placed.id}
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    monkeypatch.setattr(proc, "send", lambda pids, signum: None)
    settings = plane.settings.model_copy(update={"quarantine_s": 0.2})
    notifier = Notifier("unix:///nowhere")
    try:
        plane.eventually(lambda: proc.of_attempt(placed.id) == [stray.pid])
        one = Recovery(settings, plane.database, notifier, placed, words="its supervisor is gone")
        plane.eventually(one.step)
        assert (plane.attempt(placed.job_id).status, _states(plane)) == (
            AttemptStatus.FAILED,
            [DeviceState.QUARANTINED],
        )
        assert plane.kinds(placed.job_id).count("devices_quarantined") == 1
        cared = _care(plane, Deaf())
        assert not cared.look_again()
        assert _states(plane) == [DeviceState.QUARANTINED]
    finally:
        stray.kill()
        stray.wait()
    assert not is_running(stray.pid)
    assert recovery.look_again(plane.settings, plane.database, notifier, plane.attempt(placed.job_id))
    assert _states(plane) == [DeviceState.FREE]
    freed = [event.data for event in plane.events(placed.job_id) if event.kind == "devices_freed"]
    assert freed == [{"attempt": 1, "devices": [0]}]
    with plane.database.read() as session:
        assert recovery.quarantined(session, "testhost") == []


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def test_a_process_that_ignores_its_grace_is_killed_before_its_devices_are_given_up(
    plane: Plane, placed: Attempt
) -> None:
    """However long the grace is beside the time to the quarantine: that one counts from the first SIGKILL."""
    environment = {**os.environ, proc.ATTEMPT_VARIABLE: placed.id}
    stray = subprocess.Popen([sys.executable, "-c", STUBBORN], env=environment, stdout=subprocess.PIPE)
    settings = plane.settings.model_copy(update={"stop_grace_s": 0.5, "quarantine_s": 0.5})
    try:
        assert stray.stdout is not None
        assert stray.stdout.readline() == b"deaf\n"
        one = Recovery(
            settings, plane.database, Notifier("unix:///nowhere"), placed, words="not renewed", kill_supervisor=True
        )
        began = proc.boottime()
        plane.eventually(one.step)
        assert proc.boottime() - began >= 0.5
        assert stray.wait(timeout=30) == -signal.SIGKILL
    finally:
        stray.kill()
        stray.wait()
        stray.communicate()
    assert _states(plane) == [DeviceState.FREE]


@pytest.mark.parametrize("closed_by_others", [True, False])
def test_a_supervisor_that_cannot_be_ended_costs_its_devices_and_not_its_job(
    plane: Plane, placed: Attempt, closed_by_others: bool
) -> None:
    """SIGKILL goes only to who the lock names: held without a name, it is never let go."""
    environment = {**os.environ, proc.ATTEMPT_VARIABLE: placed.id}
    rank = subprocess.Popen([sys.executable, "-c", STUBBORN], env=environment, stdout=subprocess.PIPE)
    notifier = Notifier("unix:///nowhere")
    settings = plane.settings.model_copy(update={"stop_grace_s": 0.1, "quarantine_s": 0.5})
    one = Recovery(settings, plane.database, notifier, placed, words="not renewed", kill_supervisor=True)
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"deaf\n"
        with RunLock(plane.run_dir(placed.job_id)):
            assert not one.step()
            if closed_by_others:
                with plane.database.write() as session:
                    attempts.close(
                        session,
                        placed.id,
                        job_id=placed.job_id,
                        reason=ExitReason.INFRA,
                        message="",
                        devices_clean=False,
                    )
                one.was_closed()
            began = proc.boottime()
            plane.eventually(one.step)
            assert proc.boottime() - began >= 0.5
            assert rank.wait(timeout=30) == -signal.SIGKILL, "its ranks do not outlive what was given up"
            assert plane.attempt(placed.job_id).status is AttemptStatus.FAILED
            assert _states(plane) == [DeviceState.QUARANTINED]
            assert not recovery.look_again(plane.settings, plane.database, notifier, plane.attempt(placed.job_id))
    finally:
        rank.kill()
        rank.wait()
        rank.communicate()
    assert plane.kinds(placed.job_id).count("devices_quarantined") == 1
    assert recovery.look_again(plane.settings, plane.database, notifier, plane.attempt(placed.job_id))
    assert _states(plane) == [DeviceState.FREE]


def test_what_was_given_up_is_still_killed_when_it_can_be(plane: Plane, placed: Attempt) -> None:
    environment = {**os.environ, proc.ATTEMPT_VARIABLE: placed.id}
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    try:
        plane.eventually(lambda: proc.of_attempt(placed.id) == [stray.pid])
        with plane.database.write() as session:
            attempts.close(
                session, placed.id, job_id=placed.job_id, reason=ExitReason.INFRA, message="", devices_clean=False
            )
            hosts.quarantine(session, placed.id)
        notifier = Notifier("unix:///nowhere")
        assert not recovery.look_again(plane.settings, plane.database, notifier, plane.attempt(placed.job_id))
        assert stray.wait(timeout=30) == -signal.SIGKILL
        assert recovery.look_again(plane.settings, plane.database, notifier, plane.attempt(placed.job_id))
    finally:
        stray.kill()
        stray.wait()
    assert _states(plane) == [DeviceState.FREE]


def test_a_supervisor_that_cleans_up_keeps_quarantined_devices(plane: Plane, placed: Attempt) -> None:
    """While anybody holds the run directory, nobody has proven anything."""
    with plane.database.write() as session:
        attempts.close(
            session, placed.id, job_id=placed.job_id, reason=ExitReason.INFRA, message="", devices_clean=False
        )
        hosts.quarantine(session, placed.id)
    with RunLock(plane.run_dir(placed.job_id)):
        assert not recovery.look_again(
            plane.settings, plane.database, Notifier("unix:///nowhere"), plane.attempt(placed.job_id)
        )
    assert _states(plane) == [DeviceState.QUARANTINED]


def _states(plane: Plane) -> list[DeviceState]:
    with plane.database.read() as session:
        return [one.device.state for view in hosts.all_hosts(session) for one in view.devices]
