"""Planes to break. `LONGYARD_TEST_FAULTS=all` (`./run faults --all`): full counts at default timings; else a seeded sample at 1/20."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import checks
from tests.faults import plane as planes
from tests.faults.client import TERMINAL
from tests.faults.plane import Plane
from tests.faults.timings import FULL, QUICK, Timings

IS_FULL = os.environ.get("LONGYARD_TEST_FAULTS") == "all"
LIMIT_S = 7200 if IS_FULL else 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time than other tests have: whole planes start, and the machine may be busy."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def timings() -> Timings:
    return FULL if IS_FULL else QUICK


@pytest.fixture
def rng(record_property: Callable[[str, object], None]) -> random.Random:
    """Seeded by LONGYARD_TEST_SEED or anew; a failing test's output has it."""
    seed = int(os.environ.get("LONGYARD_TEST_SEED") or random.randrange(1 << 32))
    record_property("seed", seed)
    print(f"LONGYARD_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def count() -> Callable[[int, int], int]:
    """`count(full, sampled)`: how often to repeat."""
    return lambda full, sampled: full if IS_FULL else sampled


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings) -> Iterator[Plane]:
    """The file's plane: one host of four devices."""
    root = tmp_path_factory.mktemp("plane")
    with planes.running(root, timings, devices={"a": 4}, template=sqlite_template, variables=calm(timings)) as plane:
        yield plane


@pytest.fixture
def plane(shared: Plane) -> Iterator[Plane]:
    """The file's plane. After the test it is healed, its jobs end, and every check is made of those that the test has submitted."""
    before = set(shared.client.promises.submitted)
    yield shared
    settle(shared, [job_id for job_id in shared.client.promises.submitted if job_id not in before])


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Jobs that wait for this file go on once the test makes it."""
    return tmp_path / "gate"


def calm(timings: Timings) -> dict[str, str]:
    """A lease that a busy machine does not end, for tests that are not about leases."""
    return {"LONGYARD_LEASE_S": str(20 * timings.settings["lease_s"])}


def settle(plane: Plane, job_ids: list[str]) -> None:
    plane.start()
    for job_id in job_ids:
        if plane.client.status(job_id) not in TERMINAL:
            plane.client.ask(job_id, "cancel")
    checks.all_of(plane, job_ids)
