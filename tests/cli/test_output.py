"""How a queued job and a host look in a terminal."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli import output


def queued(**wait: Any) -> dict[str, Any]:
    start_at = (datetime.now(UTC) + timedelta(minutes=39.5)).isoformat().replace("+00:00", "Z")
    names = ("created_at", "started_at", "finished_at", "progress", "attempt", "result", "log_tail")
    known = {"id": "j", "name": "n", "status": "queued", "preset": "demo", "num_devices": 8, "device_type": "npu"}
    wait = {"position": 3, "reason": "needs 8", "estimated_start_at": start_at, "is_promised": True} | wait
    return {**dict.fromkeys(names), **known, "status_reason": "waiting: needs 8", "labels": {}, "wait": wait}


def test_why_a_job_was_cancelled_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    output.outcome(queued() | {"status": "cancelled", "status_reason": "cancelled"})
    assert capsys.readouterr().out == "cancelled\n"
    output.outcome(queued() | {"status": "failed", "status_reason": "failed", "attempt": {"message": "no such file"}})
    assert capsys.readouterr().out == "failed: no such file\n"


def test_a_queued_job_shows_its_place_and_when_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    output.jobs({"data": [queued()], "has_more": False})
    assert "#3, in about 40 min" in capsys.readouterr().out
    output.jobs({"data": [queued(estimated_start_at=None)], "has_more": False})
    line = capsys.readouterr().out.splitlines()[1]
    assert "#3" in line
    assert "about" not in line
    output.jobs({"data": [queued(position=None)], "has_more": False})
    assert "#" not in capsys.readouterr().out


def test_how_sure_an_estimate_is_stands_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    output.job(queued())
    kept = capsys.readouterr().out
    assert "position  3" in kept
    assert "in about 40 min (devices are kept for it" in kept
    output.job(queued(is_promised=False))
    assert "in about 40 min (rough, easily off by a factor of two)" in capsys.readouterr().out


def test_a_host_shows_who_holds_what(capsys: pytest.CaptureFixture[str]) -> None:
    held = {"index": 0, "state": "held", "cordoned": True, "job_id": "j1", "owner": "ada"}
    free = {"index": 1, "state": "free", "cordoned": False, "job_id": None, "owner": None}
    host = {"name": "a\x1b", "status": "online", "device_type": "npu", "devices": [held, free]}
    output.hosts({"data": [host | {"versions": {"torch": "2.13"}, "last_seen_at": "now"}]})
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["a\ufffd", "online", "npu", "0", "held,", "cordoned", "j1", "ada"]
    assert shown[2].split() == ["a\ufffd", "online", "npu", "1", "free"]
    assert shown[3] == "a\ufffd: torch 2.13; last seen now"
