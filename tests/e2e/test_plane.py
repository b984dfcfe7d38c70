"""The plane as its operator meets it: killed, stopped, started again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.e2e.conftest import SMALL, Plane

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Eventually = Callable[..., object]


def step(plane: Plane, job_id: str) -> int:
    return (plane.job(job_id)["progress"] or {}).get("step") or 0


def test_a_killed_plane_leaves_only_what_trains_and_follows_it_again(plane: Plane, eventually: Eventually) -> None:
    job_id = plane.submit("goes-on", num_devices=2, max_steps=1_000_000)
    eventually(lambda: step(plane, job_id) >= 5)
    progress = plane.data_dir / "jobs" / job_id / "a1" / "r0.progress"

    plane.process.kill()
    plane.process.wait()

    def others() -> list[str]:
        supervisors = _supervisors(plane)
        said = [_words(process) for process in plane.processes() if process.pid not in supervisors]
        return [" ".join(words) for words in said if words and "trainer" not in words]

    eventually(lambda: not others(), within_s=10.0)
    left = plane.processes()
    assert sum("trainer" in _words(process) for process in left) >= 2
    before = progress.read_bytes()
    eventually(lambda: progress.read_bytes() != before)

    reached = max(1, _step_of(before))
    plane.start()
    eventually(lambda: step(plane, job_id) > reached)
    job = plane.job(job_id)
    assert (job["status"], job["attempt"]["number"]) == ("running", 1)

    plane.post(f"/jobs/{job_id}/cancel")
    eventually(lambda: plane.job(job_id)["status"] == "cancelled")
    eventually(lambda: not any("trainer" in _words(process) for process in plane.processes()))


def test_an_interrupted_plane_checkpoints_and_the_next_start_resumes(plane: Plane, eventually: Eventually) -> None:
    job_id = plane.submit("resumes", max_steps=1_000_000, save_steps=1_000_000)
    eventually(lambda: step(plane, job_id) >= 5)

    plane.process.send_signal(signal.SIGINT)
    assert plane.process.wait(timeout=90) == 0
    eventually(lambda: not plane.processes(), within_s=5.0)

    plane.start()
    eventually(
        lambda: plane.job(job_id)["attempt"]["number"] == 2 and plane.job(job_id)["attempt"]["status"] == "running"
    )
    (checkpoint,) = plane.get(f"/jobs/{job_id}/checkpoints")["data"]
    assert checkpoint["attempt"] == 1
    eventually(lambda: step(plane, job_id) > checkpoint["step"])
    series = plane.get(f"/jobs/{job_id}/metrics?names=loss")["series"]
    resumed = next(one for one in series if one["attempt"] == 2)
    assert resumed["points"][0][0] == checkpoint["step"] + 1
    plane.post(f"/jobs/{job_id}/cancel")
    eventually(lambda: plane.job(job_id)["status"] == "cancelled")


def test_two_ranks_train_to_the_same_losses_as_one(plane: Plane, eventually: Eventually) -> None:
    """At an equal global batch, through the whole way: placement, gloo, reports."""
    plain = {"max_steps": 8, "from_scratch": {**_without_dropout()}}
    one = plane.submit("one", num_devices=1, per_device_train_batch_size=4, **plain)
    two = plane.submit("two", num_devices=2, per_device_train_batch_size=2, **plain)
    for job_id in (one, two):
        eventually(lambda job_id=job_id: plane.job(job_id)["status"] == "succeeded")
    assert len(plane.job(two)["attempt"]["devices"]) == 2
    losses = [_losses(plane, job_id) for job_id in (one, two)]
    assert len(losses[0]) == 8
    assert all(abs(a - b) <= 1e-5 * abs(a) for a, b in zip(*losses, strict=True)), losses


def test_a_trainer_that_raises_is_told_with_rank_words_and_log(plane: Plane, eventually: Eventually) -> None:
    text = plane.inputs / "broken.txt"
    # Behind the head of the file, at which the host looks before it starts a rank.
    text.write_bytes(b"good line\n" * 500_000 + b"\xff\xfe is no text\n")
    job_id = plane.submit("fails", num_devices=2, train_file=str(text))
    eventually(lambda: plane.job(job_id)["status"] == "failed")
    job = plane.job(job_id)
    assert (job["attempt"]["exit_reason"], job["attempt"]["failing_rank"] in (0, 1)) == ("user_error", True)
    assert "UTF-8" in job["attempt"]["message"]
    assert "broken.txt" in "".join(job["log_tail"])
    assert plane.get("/hosts")["data"][0]["devices"][0]["state"] == "free"


def _without_dropout() -> dict[str, float | int]:
    return {**SMALL["from_scratch"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _losses(plane: Plane, job_id: str) -> list[float]:
    (series,) = plane.get(f"/jobs/{job_id}/metrics?names=loss")["series"]
    return [point[1] for point in series["points"]]


def _step_of(progress: bytes) -> int:
    return json.loads(progress)["step"]


def _words(process: psutil.Process) -> list[str]:
    """Its command line; none where it has ended since it was listed."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _supervisors(plane: Plane) -> set[int]:
    return {int(path.read_text().split()[0]) for path in plane.data_dir.glob("jobs/*/a*/supervisor.lock")}
