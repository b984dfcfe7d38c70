"""Checkpoints that cannot be written (F16) or are cut short (F17); losses that are no numbers (F25). The trainer is the real one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import plane as planes
from tests.faults import programs
from tests.faults.conftest import IS_FULL, calm
from tests.faults.plane import Plane
from tests.faults.timings import Timings
from tests.trainer.conftest import WITH_DROPOUT, Inputs, inputs

__all__ = ["inputs"]
TRAINER_S = 600.0
"""Stated for a run of the real trainer: it imports torch, and the machine may be busy. At a twentieth it is 30 s, and the patience."""

TIMES = 50 if IS_FULL else 5
STEPS = 3 * TIMES + 8
NUM_THINGS = 22
"""So many things that the interpreter is audited for does a rank in one save."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, timings: Timings, inputs: Inputs
) -> Iterator[Plane]:
    """One host that runs the real trainer."""
    patient = Timings(timings.scale, patience_s=120.0)
    variables = {"LONGYARD_TRAINER_MODULE": "trainer", **calm(timings)}
    with planes.running(
        tmp_path_factory.mktemp("plane"),
        patient,
        devices={"a": 2},
        template=sqlite_template,
        variables=variables,
    ) as plane:
        shutil.copytree(inputs.train_file.parent, plane.inputs / "text")
        yield plane


def training(plane: Plane, **more: Any) -> str:
    text = plane.inputs / "text"
    train = {
        "from_scratch": WITH_DROPOUT,
        "tokenizer_name": str(text / "lf_token"),
        "train_file": str(text / "train_corpus.txt"),
        "do_eval": False,
        "max_seq_length": 32,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_steps": STEPS,
    }
    spec = {"preset": "demo", "num_devices": 1, "device_type": "cpu", "train": train | more}
    return plane.client.submit(spec)


def learnt_alike(plane: Plane, job_id: str, uninterrupted: str) -> None:
    """K1: every loss of every attempt, bit for bit, and no step left out."""
    (expected,) = plane.client.series(uninterrupted, "loss").values()
    seen: set[int] = set()
    for number, losses in plane.client.series(job_id, "loss").items():
        assert losses == {step: expected[step] for step in losses}, f"attempt {number} learnt something else"
        seen |= set(losses)
    assert seen == set(expected)


@pytest.fixture(scope="module")
def uninterrupted(shared: Plane) -> str:
    """The same training with nothing going wrong."""
    job_id = training(shared, save_steps=3)
    assert programs.until_ended(shared, job_id, stated_s=TRAINER_S)["status"] == "succeeded"
    return job_id


def test_f16_the_disk_is_full_when_a_checkpoint_is_written(plane: Plane, uninterrupted: str) -> None:
    plane.switch("disk_full", "/a1/checkpoints/step-12.tmp/")
    job_id = training(plane, save_steps=4)
    closed = programs.until_closed(plane, job_id, stated_s=TRAINER_S)
    assert (closed["exit_reason"], closed["failing_rank"]) == ("storage", 0)
    assert "No space left on device" in closed["message"]
    plane.switch("disk_full", None)
    listed = plane.client.get(f"/jobs/{job_id}/checkpoints")["data"]
    assert [(one["attempt"], one["step"]) for one in listed if one["attempt"] == 1] == [(1, 4), (1, 8)]
    assert programs.until_ended(plane, job_id, stated_s=TRAINER_S)["status"] == "succeeded"
    assert min(plane.client.series(job_id, "loss")[2]) == 9
    learnt_alike(plane, job_id, uninterrupted)


def test_f17_killed_at_any_point_of_a_save(plane: Plane, uninterrupted: str, rng: random.Random) -> None:
    """One job; each attempt saves once and dies in its second save, at another point. Each goes on from the last whole one."""
    things = [thing for _ in range(TIMES) for thing in rng.sample(range(1, NUM_THINGS + 1), NUM_THINGS)]
    delays_ms = [0.0 if n <= NUM_THINGS and rng.random() < 0.7 else rng.uniform(0.01, 3) for n in range(1, TIMES + 1)]
    points = {f"a{n}": point for n, point in enumerate(zip(things, delays_ms, strict=False), start=1)}
    plane.switch("die_in_save", json.dumps(points))
    job_id = training(plane, save_steps=3)
    job = programs.until_ended(plane, job_id, stated_s=TRAINER_S * TIMES)
    plane.switch("die_in_save", None)
    ended = [one["exit_reason"] for one in plane.client.attempts(job_id)]
    assert (job["status"], ended) == ("succeeded", ["infra"] * TIMES + ["completed"])
    learnt_alike(plane, job_id, uninterrupted)


def test_f25_a_loss_that_is_no_number(plane: Plane) -> None:
    # A rate times a decay of 100 multiplies the weights by -99 at every step.
    job_id = training(plane, learning_rate=10, weight_decay=10, lr_scheduler_type="constant", max_steps=40)
    job = programs.until_ended(plane, job_id, stated_s=TRAINER_S)
    assert (job["status"], job["attempt"]["exit_reason"], job["attempt"]["number"]) == ("failed", "diverged", 1)
    assert "lower learning_rate" in job["status_reason"]
    (series,) = plane.client.get(f"/jobs/{job_id}/metrics?names=loss")["series"]
    step, value, _, flag = series["points"][-1]
    assert value is None
    assert flag in ("nan", "inf", "-inf")
    assert f"step {step}: loss" in job["attempt"]["message"]
