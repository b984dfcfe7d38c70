"""Whether a card can be given work, by what its tool says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.worker.devices.test_report import ONE_CHIP, TWO_CHIPS
from worker.agent.health_monitor import _Looker
from worker.devices.health import Fitness
from worker.devices.inventory import Inventory
from worker.devices.report import Card, CardProcess, Health, Report, read_ascend
from worker.devices.vendor_tool import Tool

CARD = Card(0, "910B3", Health.OK, None, 40.0, 0.0, 3072, 65536, 90.0)


def _report(*used_mb: int, processes: tuple[CardProcess, ...] = ()) -> Report:
    cards = tuple(replace(CARD, index=index, memory_used_mb=used) for index, used in enumerate(used_mb))
    return Report(None, cards, processes)


def test_memory_that_no_card_has_is_unknown() -> None:
    """A tool's -1 without a sign."""
    (reading,) = Fitness("npu", "npu-smi").read(_report(2**64 - 1))
    assert reading.memory_used_bytes is None


def test_what_a_card_reads_is_told_in_the_api_s_units() -> None:
    one = Fitness("npu", "npu-smi").read(read_ascend(ONE_CHIP))[0]
    assert (one.health, one.temperature_c, one.utilization) == ("ok", 48.0, 31.0)
    assert (one.memory_used_bytes, one.memory_total_bytes) == (41842 << 20, 65536 << 20)


@pytest.mark.parametrize(("health", "is_fit"), [(one, one not in (Health.ALARM, Health.CRITICAL)) for one in Health])
def test_an_alarm_or_worse_is_given_no_work(health: Health, is_fit: bool) -> None:
    (one,) = Fitness("npu", "npu-smi").read(Report(None, (replace(CARD, health=health),), ()))
    assert (one.ailment is None) is is_fit


def test_a_card_that_is_unread_is_given_no_work_and_the_others_are() -> None:
    odd = TWO_CHIPS.replace("0           0    / 0          3120 / 65536", "lost")
    one, other = Fitness("npu", "npu-smi").read(read_ascend(odd))
    assert (one.ailment or "").startswith("npu-smi does not say how it is: 2     Ascend910 | OK")
    assert other.ailment is None


@pytest.mark.parametrize(
    ("device_type", "idle", "dirty"), [("npu", (2800, 3400, 4096), 4097), ("cuda", (0, 600, 1024), 1025)]
)
def test_before_anything_was_learnt_a_bound_says_what_is_idle(
    device_type: str, idle: tuple[int, ...], dirty: int
) -> None:
    for used in idle:
        assert Fitness(device_type, "tool").read(_report(used))[0].residue is None
    assert "taken" in (Fitness(device_type, "tool").read(_report(dirty))[0].residue or "")


def test_the_least_that_was_seen_is_the_baseline_from_then_on() -> None:
    fitness = Fitness("npu", "npu-smi")
    assert [one.residue for one in fitness.read(_report(2800, 3400))] == [None, None]
    first, second = fitness.read(_report(3900, 3900))
    assert first.residue == "1.1 GiB more of its memory taken than while idle, by nobody it shows"
    assert second.residue is None
    assert fitness.read(_report(2900, 3900))[0].residue is None


def test_a_card_with_somebody_on_it_teaches_nothing() -> None:
    fitness = Fitness("npu", "npu-smi")
    mine = CardProcess(0, 7, None, "python", 100)
    assert fitness.read(_report(100, processes=(mine,)))[0].residue == "process 7 (python) of nobody's job on it"
    assert fitness.read(_report(3400))[0].residue is None


def test_many_processes_are_counted() -> None:
    processes = tuple(CardProcess(0, pid, None, "p", 1) for pid in range(5))
    residue = Fitness("npu", "npu-smi").read(_report(3000, processes=processes))[0].residue or ""
    assert residue.startswith("processes 0 (p), 1 (p), 2 (p) and 2 more")


def test_cards_are_told_in_the_runtimes_order_whatever_their_numbers() -> None:
    readings = Fitness("npu", "npu-smi").read(read_ascend(TWO_CHIPS))
    assert [(one.index, one.health) for one in readings] == [(0, "ok"), (1, "warning")]
    assert "845053" in (readings[1].residue or "")


def test_a_card_that_is_missing_takes_the_others_out_since_they_may_have_moved_up(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text(ONE_CHIP)
    tool = Tool("npu-smi", (("cat", str(answer)),), read_ascend)
    looker = _Looker(tool, read_ascend(ONE_CHIP), Inventory("npu", ("a", "b"), {}))
    first = looker.look()
    assert first is not None
    assert first.readings[0].ailment is None
    lines = ONE_CHIP.splitlines(keepends=True)
    answer.write_text(
        "".join(
            line
            for line in lines
            if "C1:00.0" not in line and "| OK            | 92.1" not in line and "4711" not in line
        )
    )
    assert looker.look() is None, "once may be a busy host"
    second = looker.look()
    assert second is not None
    assert {one.ailment for one in second.readings} == {"npu-smi lists 1 cards and listed 2 before"}
    answer.write_text(ONE_CHIP)
    third = looker.look()
    assert third is not None
    assert third.readings[0].ailment is None
