"""What the worker's processes must not carry."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from store.models import Host, Job
from store.pubsub import Notifier
from worker.forkserver.warmup import rehearse

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

FORBIDDEN = ("torch", "torch_npu", "transformers", "numpy", "fastapi", "uvicorn", "celery", "kombu")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [("worker.forkserver.server", FORBIDDEN), ("worker.__main__", FORBIDDEN[:6])],
)
def test_what_is_not_imported(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(name for name in {forbidden!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_supervisor_is_light_and_single(host: Plane) -> None:
    job_id = host.submit(
        [{"do": "count", "first": 1, "last": 500}, {"do": "say", "text": "up"}, {"do": "wait_for_stop"}]
    )
    host.until_log(job_id, b"up")
    rollup = Path(f"/proc/{host.supervisor(job_id)}/smaps_rollup").read_text()
    own = {name: int(kilobytes) for name, kilobytes in re.findall(r"^(Private_\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
    # What one more supervisor costs: it shares the rest with the launcher and all others.
    assert own["Private_Dirty"] + own["Private_Clean"] <= 25_000
    assert len(host.ranks(job_id)) == 1


def test_a_rehearsal_leaves_nothing(plane: Plane) -> None:
    rehearse(plane.database, Notifier(plane.settings.broker_url))
    with plane.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
        assert session.scalar(select(func.count()).select_from(Host)) == 0
