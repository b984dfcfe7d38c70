"""Whole attempts with real processes: how they end, and what is said of it."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from store import attempts, hosts, jobs
from store.states import AttemptStatus, ExitReason, JobStatus
from tests.worker.processes import is_running

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

VERDICT_S = 5.0
"""From the exception to the verdict in the database, at most: the other rank is given time to leave."""


def test_success(host: Plane) -> None:
    job_id = host.submit(
        [
            {"do": "phase", "name": "train", "total_steps": 20},
            {"do": "count", "first": 1, "last": 20},
            {"do": "checkpoint", "step": 20, "rank": 0},
            {"do": "say", "text": "rank zero", "rank": 0},
            {"do": "say", "text": "rank one", "rank": 1},
            {"do": "succeed", "perplexity": 3.25, "train_loss": float("nan")},
        ],
        num_devices=2,
    )
    job = host.until_ended(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.result is not None
    assert job.result["perplexity"] == 3.25
    assert job.result["train_loss"] is None
    assert job.result["output"] == str(host.run_dir(job_id) / "output")
    assert (job.step, job.total_steps) == (20, 20)
    assert host.series(job_id, "loss") == [(step, float(step)) for step in range(1, 21)]
    for rank, word in ((0, b"rank zero"), (1, b"rank one")):
        assert host.log(job_id, rank=rank) == (host.run_dir(job_id) / f"r{rank}.log").read_bytes()
        assert word in host.log(job_id, rank=rank)
    assert host.kinds(job_id) == [
        *("submitted", "status", "placed", "attempt_started", "checkpoint", "attempt_closed", "status"),
    ]
    host.assert_clean(job_id)


def test_where_the_time_of_a_start_went(host: Plane) -> None:
    job_id = host.submit(
        [
            {"do": "startup", "process": 0.25, "imports": 1.5, "wrong": "word", "nan": float("nan"), "first_step": 2},
            {"do": "report", "line": '{"kind": "of_a_newer_trainer", "step": 1}\n'},
            {"do": "metrics", "step": 1, "values": {"loss": 1.0}},
            {"do": "succeed"},
        ]
    )
    assert host.until_ended(job_id).status is JobStatus.SUCCEEDED
    (told,) = [event.data for event in host.events(job_id) if event.kind == "startup"]
    parts: dict[str, float] = told["parts"]
    assert told["attempt"] == 1
    assert list(parts) == ["launch", "process", "imports", "first_step"]
    assert (parts["process"], parts["imports"], parts["first_step"]) == (0.25, 1.5, 2.0)
    assert 0 < parts["launch"] < 60
    assert "metrics_skipped" not in host.kinds(job_id), "what is not known is no damage"


def test_a_rank_is_told_its_place_and_no_secret(host: Plane) -> None:
    job_id = host.submit(
        [{"do": "tell_config", "rank": 0}, {"do": "tell_environment", "rank": 1}, {"do": "succeed"}], num_devices=2
    )
    assert host.until_ended(job_id).status is JobStatus.SUCCEEDED
    config: dict[str, Any] = json.loads(host.log(job_id).splitlines()[0])
    assert config["device_type"] == "cpu"
    assert config["rendezvous"] == f"file://{host.run_dir(job_id)}/rendezvous"
    assert config["cpu_threads"] >= 1
    assert config["resume_from_checkpoint"] is None
    environment: dict[str, str] = json.loads(host.log(job_id, rank=1).splitlines()[0])
    assert environment["RANK"] == environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == "2"
    assert environment["OMP_NUM_THREADS"] == str(config["cpu_threads"])
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    ours = {name for name in environment if name.startswith("LONGYARD_")}
    assert ours == {"LONGYARD_ATTEMPT_ID"}
    assert environment["LONGYARD_ATTEMPT_ID"] == host.attempt(job_id).id


def test_failure_names_the_rank_and_its_last_words(host: Plane) -> None:
    job_id = host.submit(
        [
            {"do": "say", "text": "line #", "times": 30},
            {"do": "fail", "type": "ValueError", "message": "the loss fell off\nits chair", "rank": 1},
            {"do": "wait_for_stop"},
        ],
        num_devices=2,
    )
    job, attempt = host.until_ended(job_id), host.attempt(job_id)
    assert job.status is JobStatus.FAILED
    assert job.status_reason == "rank 1 failed: ValueError: its chair"
    assert (attempt.exit_reason, attempt.failing_rank) == (ExitReason.USER_ERROR, 1)
    assert host.log(job_id, rank=1).splitlines()[-1] == b"its chair"
    assert b"line 29" in host.log(job_id, rank=1)
    raised = json.loads((host.run_dir(job_id) / "r1.error.json").read_text())
    assert time.monotonic() - raised["monotonic"] < VERDICT_S
    host.assert_clean(job_id)


@pytest.mark.parametrize(
    ("operation", "reason", "words", "becomes"),
    [
        ({"do": "leave", "code": 4}, ExitReason.DIVERGED, "rank 0 failed", JobStatus.FAILED),
        ({"do": "leave", "code": 2}, ExitReason.USER_ERROR, "rank 0 failed", JobStatus.FAILED),
        ({"do": "leave", "code": 6}, ExitReason.STORAGE, "rank 0 failed", JobStatus.QUEUED),
        ({"do": "die", "signal_number": 9}, ExitReason.INFRA, "rank 0 was killed by SIGKILL", JobStatus.QUEUED),
        ({"do": "die", "signal_number": 11}, ExitReason.INFRA, "rank 0 was killed by SIGSEGV", JobStatus.QUEUED),
        (
            {"do": "fail", "type": "RuntimeError", "message": "CUDA out of memory. Tried to allocate 2 GiB"},
            *(ExitReason.OUT_OF_MEMORY, "rank 0 failed: RuntimeError: CUDA out of memory", JobStatus.QUEUED),
        ),
    ],
)
def test_cause_of_death(
    host: Plane, operation: dict[str, Any], reason: ExitReason, words: str, becomes: JobStatus
) -> None:
    job_id = host.submit([{"do": "say", "text": "working"}, operation])
    host.eventually(lambda: "attempt_closed" in host.kinds(job_id))
    attempt = host.attempt(job_id)
    assert attempt.exit_reason is reason
    assert (attempt.message or "").startswith(words)
    assert host.job(job_id).status is becomes
    host.assert_clean(job_id)


def test_the_cause_goes_before_its_consequence(host: Plane) -> None:
    """Rank 0 notices first that its peer is lost; rank 1 says why."""
    flag = str(host.flags / "peer-lost")
    job_id = host.submit(
        [
            {"do": "ignore_stop", "rank": 1},
            {"do": "say", "text": "up"},
            {"do": "wait_for", "path": flag, "rank": 0},
            {
                "do": "fail",
                "type": "RuntimeError",
                "message": "connection reset by peer",
                "kind": "lost_peer",
                "code": 7,
                "rank": 0,
            },
            {"do": "wait_for", "path": flag, "rank": 1},
            {"do": "fail", "type": "MemoryError", "message": "no room", "kind": "out_of_memory", "code": 5, "rank": 1},
        ],
        num_devices=2,
    )
    host.until_log(job_id, b"up", rank=1)
    (host.flags / "peer-lost").touch()
    host.eventually(lambda: "attempt_closed" in host.kinds(job_id))
    attempt = host.attempt(job_id)
    assert (attempt.exit_reason, attempt.failing_rank) == (ExitReason.OUT_OF_MEMORY, 1)


def test_cancel(host: Plane) -> None:
    job_id = host.submit([{"do": "say", "text": "up"}, {"do": "wait_for_stop", "save": 7}], num_devices=2)
    host.until_log(job_id, b"up")
    host.cancel(job_id)
    job, attempt = host.until_ended(job_id), host.attempt(job_id)
    assert job.status is JobStatus.CANCELLED
    assert (attempt.status, attempt.exit_reason) == (AttemptStatus.CANCELLED, ExitReason.USER_CANCELLED)
    assert b"stopped" in host.log(job_id)
    assert "checkpoint" in host.kinds(job_id)
    host.assert_clean(job_id)


def test_cancel_of_a_trainer_that_does_not_listen(host: Plane) -> None:
    job_id = host.submit(
        [{"do": "ignore_stop"}, {"do": "fork_loader"}, {"do": "say", "text": "up"}, {"do": "hang"}], num_devices=2
    )
    host.until_log(job_id, b"up", rank=1)
    host.until_log(job_id, b"up", rank=0)
    ranks = host.ranks(job_id)
    assert len(ranks) == 4
    host.cancel(job_id)
    assert host.until_ended(job_id).status is JobStatus.CANCELLED
    assert not any(is_running(pid) for pid in ranks)
    host.assert_clean(job_id)


def test_loaders_of_a_killed_rank_are_ended(host: Plane) -> None:
    flag = host.flags / "die"
    job_id = host.submit(
        [
            {"do": "fork_loader"},
            {"do": "wait_for", "path": str(flag), "rank": 0},
            {"do": "die", "signal_number": int(signal.SIGKILL), "rank": 0},
            {"do": "hang"},
        ],
        num_devices=2,
    )
    host.until_log(job_id, b"loader", rank=0)
    host.until_log(job_id, b"loader", rank=1)
    flag.touch()
    host.eventually(lambda: "attempt_closed" in host.kinds(job_id))
    loaders = [int(host.log(job_id, rank=rank).split()[1]) for rank in (0, 1)]
    assert not any(is_running(pid) for pid in loaders)
    attempt = host.attempt(job_id)
    assert (attempt.exit_reason, attempt.failing_rank) == (ExitReason.INFRA, 0)
    host.assert_clean(job_id)


def test_time_limit(host: Plane) -> None:
    job_id = host.submit([{"do": "wait_for_stop", "save": 1}], time_limit_s=0.2)
    job = host.until_ended(job_id)
    assert job.status is JobStatus.FAILED
    assert host.attempt(job_id).exit_reason is ExitReason.TIME_LIMIT
    assert "time limit of 0.2 s" in (job.status_reason or "")
    host.assert_clean(job_id)


def test_time_limit_counts_what_earlier_attempts_ran(plane: Plane) -> None:
    job_id = plane.submit([{"do": "wait_for_stop", "save": 1}], time_limit_s=1000.0)
    with plane.database.write() as session:
        jobs.touch(session, job_id).ran_s = 999.9
    plane.start()
    job = plane.until_ended(job_id)
    assert plane.attempt(job_id).exit_reason is ExitReason.TIME_LIMIT
    assert "time limit of 1000 s" in (job.status_reason or "")
    assert job.ran_s == pytest.approx(999.9 + plane.attempt(job_id).ran_s)
    assert plane.attempt(job_id).ran_s > 0


def test_inputs_are_looked_at_again_before_the_launch(host: Plane) -> None:
    outside = host.submit([], train_file="/etc/hostname")
    absent = host.submit([], train_file=str(host.inputs / "absent.txt"))
    for job_id, words in (
        (outside, "train.train_file: outside the data roots"),
        (absent, "train.train_file: there is no such file"),
    ):
        job = host.until_ended(job_id)
        assert job.status is JobStatus.FAILED
        assert host.attempt(job_id).exit_reason is ExitReason.USER_ERROR
        assert (job.status_reason or "").startswith(words)
        host.assert_clean(job_id)


def test_a_job_waits_with_a_reason_until_there_is_room(host: Plane) -> None:
    flag = host.flags / "go"
    first = host.submit([{"do": "wait_for", "path": str(flag)}, {"do": "succeed"}], num_devices=2)
    host.until_status(first, JobStatus.RUNNING)
    second = host.submit([{"do": "succeed"}])
    host.eventually(lambda: host.job(second).wait_reason)
    assert (host.job(second).wait_reason or "").startswith("needs 1 free cpu device on one host; testhost ")
    flag.touch()
    assert host.until_ended(first).status is JobStatus.SUCCEEDED
    assert host.until_ended(second).status is JobStatus.SUCCEEDED


def test_simulated_npus_run_npu_jobs_as_cpu_processes(plane: Plane) -> None:
    plane.start(LONGYARD_DEVICES="npu-sim:2")
    job_id = plane.submit([{"do": "tell_config"}, {"do": "succeed"}], num_devices=2, device_type="npu")
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert json.loads(plane.log(job_id).splitlines()[0])["device_type"] == "cpu"
    assert plane.attempt(job_id).device_type == "npu"


def test_a_cancel_before_the_supervisor_began_starts_no_rank(plane: Plane) -> None:
    """Placed while no worker runs, cancelled, and only then found by one."""
    with plane.database.write() as session:
        hosts.register(session, "testhost", device_type="cpu", device_names=["a", "b"], boot_id="1", versions={})
    job_id = plane.submit([{"do": "succeed"}])
    with plane.database.write() as session:
        attempts.place(session, job_id, host="testhost", device_indices=[0])
    plane.cancel(job_id)
    plane.start()
    assert plane.until_ended(job_id).status is JobStatus.CANCELLED
    assert plane.attempt(job_id).exit_reason is ExitReason.USER_CANCELLED
    assert not (plane.run_dir(job_id) / "config.json").exists()
    plane.assert_clean(job_id)
