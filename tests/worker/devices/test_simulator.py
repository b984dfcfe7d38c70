"""A simulated NPU host from end to end: what its cards show, who gets them, and what a broken one brings about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from store import hosts, jobs
from store.models import Device
from store.states import ExitReason, JobStatus
from worker.devices import simulator, vendor_tool
from worker.devices.report import Health, read_ascend

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

NPU = {"LONGYARD_DEVICES": "npu-sim:2", "LONGYARD_CARDS_S": "0.3", "LONGYARD_RETRY_S": "0.2"}


def _device(plane: Plane, index: int) -> Device:
    with plane.database.read() as session:
        (view,) = hosts.all_hosts(session)
    return view.devices[index].device


def _make(plane: Plane, **state: Any) -> None:
    """The state file, whole: the stand-in may be reading it."""
    path = plane.settings.host_dir / vendor_tool.STATE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(state))
    path.with_suffix(".tmp").rename(path)


def _hold(plane: Plane) -> list[dict[str, Any]]:
    """A program that waits for the file `go`."""
    return [{"do": "say", "text": "here"}, {"do": "wait_for", "path": str(plane.flags / "go")}, {"do": "succeed"}]


def test_the_stand_in_speaks_npu_smis_own_form() -> None:
    tenants = [simulator.Tenant(1, 4711, "rank", 900, 55.0)]
    report = read_ascend(simulator.table(3, tenants, {"2": {"health": "Alarm", "temperature_c": 93}}))
    assert [(card.index, card.health, card.memory_used_mb) for card in report.cards] == [
        (0, Health.OK, 3072),
        (1, Health.OK, 3972),
        (2, Health.ALARM, 3072),
    ]
    assert (report.cards[1].utilisation_percent, report.cards[2].temperature_c) == (55.0, 93.0)
    assert [(one.index, one.pid) for one in report.processes] == [(1, 4711)]


def test_a_rank_is_seen_on_its_card_and_the_card_serves_again_once_it_was_seen_clean(plane: Plane) -> None:
    plane.start(**NPU)
    job_id = plane.submit(_hold(plane), num_devices=2, device_type="npu")
    plane.until_log(job_id, b"here", rank=1)
    busy = plane.eventually(
        lambda: ((one := _device(plane, 1)).memory_used_bytes or 0) > simulator.IDLE_MB << 20 and one
    )
    assert (busy.health, busy.memory_total_bytes, busy.unfit_reason) == ("ok", simulator.TOTAL_MB << 20, None)
    assert busy.temperature_c >= simulator.IDLE_C
    (plane.flags / "go").touch()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert plane.attempt(job_id).simulated
    placed = next(event for event in plane.events(job_id) if event.kind == "placed")
    assert placed.data["simulated"] is True
    again = plane.submit([{"do": "succeed"}], num_devices=2, device_type="npu")
    assert plane.until_ended(again).status is JobStatus.SUCCEEDED
    plane.eventually(lambda: _device(plane, 1).memory_used_bytes == simulator.IDLE_MB << 20)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"cards": {"1": {"health": "Alarm"}}}, "npu-smi says its health is ALARM"),
        ({"cards": {"1": {"memory_mb": 9216}}}, "6.0 GiB more of its memory taken than while idle"),
        ({"processes": [{"card": 1, "pid": 99, "name": "notebook", "memory_mb": 10}]}, "process 99 (notebook)"),
        ({"fault": "exit"}, "npu-smi ended with exit code 1 (dcmi module initialize failed"),
        ({"fault": "garbage"}, "npu-smi answered what cannot be read"),
    ],
    ids=["health", "memory", "process", "silent", "unreadable"],
)
def test_a_card_that_is_not_fit_is_left_out_until_it_is(plane: Plane, state: dict[str, Any], words: str) -> None:
    plane.start(**NPU)
    _make(plane, **state)
    plane.eventually(lambda: words in (_device(plane, 1).unfit_reason or ""))
    large = plane.submit([{"do": "succeed"}], num_devices=2, device_type="npu")
    plane.eventually(lambda: plane.job(large).wait_reason)
    assert plane.job(large).status is JobStatus.QUEUED
    _make(plane)
    assert plane.until_ended(large).status is JobStatus.SUCCEEDED


def test_a_tool_that_hangs_keeps_nobody_waiting(plane: Plane) -> None:
    _make(plane)
    plane.start(**NPU)
    _make(plane, fault="hang")
    with plane.database.read() as session:
        before = hosts.get(session, "testhost").beat
    cpu_free = plane.submit([{"do": "succeed"}], num_devices=1, device_type="npu")
    assert plane.until_ended(cpu_free).status is JobStatus.SUCCEEDED

    def beats_on() -> bool:
        with plane.database.read() as session:
            return hosts.get(session, "testhost").beat > before + 5

    plane.eventually(beats_on)


def test_a_broken_card_is_cordoned_its_log_is_kept_and_the_next_attempt_has_another(plane: Plane) -> None:
    plane.start(**NPU)
    program = [{"do": "plog", "text": "[ERROR] RUNTIME: hardware event 0x80E01801"}, {"do": "leave", "code": 1}]
    job_id = plane.submit([*program], device_type="npu")
    plane.eventually(lambda: plane.job(job_id).num_attempts > 1)
    with plane.database.write() as session:
        jobs.cancel(session, job_id)
    events = plane.events(job_id)
    closed = next(event.data for event in events if event.kind == "attempt_closed")
    assert (closed["exit_reason"], closed["failing_rank"]) == (ExitReason.DEVICE_ERROR, 0)
    assert "the card's memory has an error that cannot be corrected" in closed["message"]
    cordoned = next(event.data for event in events if event.kind == "device_cordoned")
    placed = [event.data["devices"] for event in events if event.kind == "placed"]
    assert [cordoned["device"]] == placed[0] != placed[1]
    assert _device(plane, cordoned["device"]).cordoned_at is not None
    assert list((plane.run_dir(job_id) / "plog").rglob("plog-*.log"))
    plane.until_ended(job_id)


def test_an_attempt_that_ended_well_leaves_no_runtime_log(plane: Plane) -> None:
    plane.start(**NPU)
    job_id = plane.submit([{"do": "plog", "text": "[INFO] fine"}, {"do": "succeed"}], device_type="npu")
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    plane.eventually(lambda: not (plane.run_dir(job_id) / "plog").exists())
