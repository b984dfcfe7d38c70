"""Servers that are away: the API (F5) and the broker (F6–F8)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from store.settings import Settings
from tests.faults import injections, programs, proxy
from tests.faults import plane as planes
from tests.faults.conftest import calm
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.timings import Timings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """Its broker is reached by a way that can be cut."""
    root = tmp_path_factory.mktemp("plane")
    way, url = proxy.to_broker(str(Settings(data_dir=root / "data").broker_socket))
    with planes.running(
        root,
        timings,
        devices={"a": 4},
        template=sqlite_template,
        redis_url=url,
        ways={"broker": way},
        variables=calm(timings),
    ) as plane:
        yield plane


def test_f5_the_api_killed_around_a_submission(
    plane: Plane, rng: random.Random, count: Callable[[int, int], int]
) -> None:
    """At random points from the request's start to after its answer; the same key again gives the same job, and one."""
    for number in range(count(40, 2)):
        key, spec = f"around-{number}", plane.spec(lesson(1))
        answered: list[str] = []
        thread = threading.Thread(target=_submit_once, args=(plane, spec, key, answered))
        thread.start()
        time.sleep(rng.uniform(0, 0.02))
        plane.api.kill()
        thread.join()
        plane.start()
        job_id = plane.client.submit(spec, key=key)
        assert answered in ([], [job_id])
        listed = plane.client.get("/jobs?limit=1000")["data"]
        assert [job["id"] for job in listed if job["train"]["train_file"] == spec["train"]["train_file"]] == [job_id]


def test_f6_the_broker_away(plane: Plane, gate: Path, count: Callable[[int, int], int]) -> None:
    running = plane.submit(lesson(hold_at=30, gate=gate), num_devices=2)
    programs.until_step(plane, running, 30)
    plane.broker.kill()
    away_until = time.monotonic() + plane.timings.scale * count(600, 120)
    while time.monotonic() < away_until:
        new = plane.submit(lesson(5))
        programs.until_attempt(plane, new, 1, stated_s=10)
        assert programs.until_ended(plane, new)["status"] == "succeeded"
    gate.touch()
    job = programs.until_ended(plane, running)
    assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)
    assert not plane.broker.is_up


@pytest.mark.parametrize("empty", [injections.flush_broker, injections.restart_broker_empty])
def test_f7_the_broker_emptied(plane: Plane, gate: Path, empty: Callable[[Plane], None]) -> None:
    holding = plane.submit(lesson(hold_at=10, gate=gate), num_devices=4)
    programs.until_step(plane, holding, 10)
    queued = [plane.submit(lesson(10)) for _ in range(6)]
    empty(plane)
    gate.touch()
    for job_id in [holding, *queued]:
        job = programs.until_ended(plane, job_id)
        assert (job["status"], job["attempt"]["number"]) == ("succeeded", 1)


def test_f8_the_brokers_connections_reset_again_and_again(plane: Plane) -> None:
    # A consumer that serves hints is what is to be broken.
    assert programs.until_ended(plane, plane.submit(lesson(5)))["status"] == "succeeded"
    for reset in range(5):
        plane.ways["broker"].reset()
        if reset % 2:
            injections.reset_broker_connections(plane, times=1, within_s=0.6)
        time.sleep(0.6)
    job_id = plane.submit(lesson(5))
    programs.until_attempt(plane, job_id, 1, stated_s=30)
    assert programs.until_ended(plane, job_id)["status"] == "succeeded"


def _submit_once(plane: Plane, spec: dict[str, object], key: str, answered: list[str]) -> None:
    try:
        answer = plane.client.once("POST", "/jobs", json=spec, headers={"Idempotency-Key": key})
    except (httpx.TransportError, OSError):
        return
    assert answer.status_code in (200, 201), answer.text
    answered.append(answer.json()["id"])
