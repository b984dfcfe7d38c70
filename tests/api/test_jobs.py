from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import func, make_url, select

from store import attempts, checkpoints, device_health, jobs, logs
from store.db import Database
from store.device_health import Reading
from store.models import Attempt, Job
from store.settings import Settings
from store.states import ExitReason
from tests.api.conftest import Running, serving
from trainer.spec.presets import PRESETS

Submit = Callable[..., str]


def num_jobs(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def test_a_submitted_job_reads_back_as_the_contract_says(client: httpx.Client, spec: dict[str, Any]) -> None:
    answer = client.post("/jobs", json=spec | {"labels": {"team": "nlp"}, "priority": 3})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert client.get(answer.headers["location"]).json() == job
    assert set(job) == {
        "id", "name", "status", "status_reason", "intent", "preset", "train", "num_devices", "device_type", "priority",
        "labels", "owner", "time_limit_s", "created_at", "started_at", "finished_at", "progress", "wait", "attempt",
        "result", "log_tail", "cursor",
    }  # fmt: skip
    known = {"name": "first", "status": "queued", "intent": "run", "preset": "demo", "num_devices": 2, "priority": 3}
    assert {name: job[name] for name in known} == known
    assert job["device_type"] == "cpu"
    assert job["labels"] == {"team": "nlp"}
    assert job["owner"] == "admin"
    assert job["train"]["max_seq_length"] == 128, "the preset's value"
    assert job["train"]["train_file"] == spec["train"]["train_file"]
    assert job["wait"] == {
        "position": None,
        "reason": "no host is registered yet: start a worker",
        "estimated_start_at": None,
        "is_promised": False,
    }
    assert [job[name] for name in ("started_at", "progress", "attempt", "result", "log_tail")] == [None] * 5
    assert job["created_at"].endswith("Z")


def test_a_dry_run_stores_nothing(client: httpx.Client, database: Database, host: str, spec: dict[str, Any]) -> None:
    answer = client.post("/jobs", params={"dry_run": True}, json=spec)
    assert answer.status_code == 200, answer.text
    assert answer.json()["wait"] is None
    assert answer.json()["placement"] == {"host": "a", "devices": [0, 1]}
    assert answer.json()["steps"] is None, "its tokenizer is none"
    assert answer.json()["spec"]["train"]["learning_rate"] == PRESETS["demo"].train["learning_rate"]
    assert "location" not in answer.headers
    assert num_jobs(database) == 0


def test_a_dry_run_says_why_it_would_wait(
    client: httpx.Client, submit: Submit, start: Callable[[str], Attempt], spec: dict[str, Any]
) -> None:
    start(submit())
    answer = client.post("/jobs", params={"dry_run": True}, json=spec | {"num_devices": 3})
    assert answer.json()["placement"] is None
    assert answer.json()["wait"] == {
        "position": 1,
        "reason": "needs 3 free cpu devices on one host; a has 2 of 4 free, kept for it",
        "estimated_start_at": None,
        "is_promised": True,
    }


def test_the_same_key_and_body_give_the_same_job(
    client: httpx.Client, database: Database, spec: dict[str, Any], inputs: Path
) -> None:
    key = {"Idempotency-Key": "k!~-1"}
    first = client.post("/jobs", json=spec, headers=key)
    assert (first.status_code, first.headers.get("idempotent-replay")) == (201, None)
    (inputs / "train.txt").unlink()
    again = client.post("/jobs", json=dict(reversed(spec.items())), headers=key)
    assert (again.status_code, again.headers["idempotent-replay"]) == (200, "true")
    assert again.json()["id"] == first.json()["id"]
    other = client.post("/jobs", json=spec | {"priority": 1}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert num_jobs(database) == 1


def test_a_key_of_other_characters_is_refused(client: httpx.Client, spec: dict[str, Any]) -> None:
    for key in (b"", b"x" * 256, b"with space", b"a\tb", "ü".encode()):
        answer = client.post("/jobs", json=spec, headers=[(b"Idempotency-Key", key)])
        assert answer.status_code == 422, key
        assert answer.json()["errors"][0]["field"] == "header.Idempotency-Key"
        assert answer.json()["errors"][0]["fix"] == "give 1 to 255 printable ASCII characters without spaces"
    assert client.post("/jobs", json=spec, headers={"Idempotency-Key": "x" * 255}).status_code == 201


def test_requests_with_one_key_at_the_same_time_make_one_job(
    client: httpx.Client, database: Database, spec: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: client.post("/jobs", json=spec, headers={"Idempotency-Key": "one"}), range(24))
        )
    assert sorted({answer.status_code for answer in answers}) == [200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert num_jobs(database) == 1


def test_two_replicas_make_one_job_of_one_key(
    server: Running, client: httpx.Client, settings: Settings, database: Database, spec: dict[str, Any], token: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with (
        serving(settings) as second,
        httpx.Client(base_url=second.url, headers=headers, timeout=20) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        for key in ("a", "b", "c"):
            calls = [(replica, key) for _ in range(4) for replica in (client, other)]
            answers = list(
                pool.map(lambda call: call[0].post("/jobs", json=spec, headers={"Idempotency-Key": call[1]}), calls)
            )
            assert {answer.status_code for answer in answers} <= {200, 201}
            assert len({answer.json()["id"] for answer in answers}) == 1
    assert num_jobs(database) == 3


def test_submissions_that_arrive_together_are_all_stored(
    client: httpx.Client, database: Database, spec: dict[str, Any]
) -> None:
    """One of the batch conflicts; its neighbours are stored all the same."""
    client.post("/jobs", json=spec, headers={"Idempotency-Key": "taken"})

    def post(number: int) -> int:
        headers = {"Idempotency-Key": "taken"} if number % 8 == 0 else {}
        return client.post("/jobs", json=spec | {"name": f"job {number}"}, headers=headers).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(post, range(64)))
    assert statuses == [409 if number % 8 == 0 else 201 for number in range(64)]
    assert num_jobs(database) == 1 + 56


def test_a_locked_database_is_503_and_nothing_is_half_done(
    client: httpx.Client,
    database: Database,
    spec: dict[str, Any],
    settings: Settings,
    eventually: Callable[..., object],
) -> None:
    with _locked(settings):
        answer = client.post("/jobs", json=spec, headers={"Idempotency-Key": "again"})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200
    answer = client.post("/jobs", json=spec, headers={"Idempotency-Key": "again"})
    assert answer.status_code in (200, 201)
    assert num_jobs(database) == 1


def test_the_queue_is_bounded(
    client: httpx.Client, spec: dict[str, Any], submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_QUEUED", 2)
    submit()
    assert client.post("/jobs", json=spec).status_code == 201
    answer = client.post("/jobs", json=spec)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 0


def test_lists_page_through_everything_once_newest_first(client: httpx.Client, submit: Submit) -> None:
    ids = [submit(f"job {number}") for number in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = client.get("/jobs", params=query).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert seen == sorted(ids, reverse=True)


def test_lists_filter(client: httpx.Client, submit: Submit) -> None:
    red = submit("red one", labels={"colour": "red", "size": "1"})
    submit("blue one", labels={"colour": "blue", "size": "1"})
    client.post(f"/jobs/{submit('gone')}/cancel")

    def names(**query: Any) -> list[str]:
        answer = client.get("/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return [job["name"] for job in answer.json()["data"]]

    assert names(label=["colour=red", "size=1"]) == ["red one"]
    assert names(label="colour=green") == []
    assert names(status="cancelled") == ["gone"]
    assert names(status="", q="", after="") == ["gone", "blue one", "red one"]
    assert names(q="RED") == ["red one"]
    assert names(q=red[:13]) != []
    assert names(q="%") == []
    assert names(owner="admin", status="queued") == ["blue one", "red one"]
    assert names(owner="nobody") == []


def test_every_label_that_is_taken_is_found(client: httpx.Client, submit: Submit) -> None:
    labels = {"team": "nlp", "a.b/c_d-E9": 'x=y "quoted" \\ é 中', "0": "", "k" * 63: "v" * 256}
    submit("labelled", labels=labels)
    submit("other", labels={key: f"{value}!"[-256:] for key, value in labels.items()})
    for key, value in labels.items():
        answer = client.get("/jobs", params={"label": f"{key}={value}"})
        assert [job["name"] for job in answer.json()["data"]] == ["labelled"], (key, answer.text)


UNMEANT_QUERIES = {
    "limit=0": "query.limit",
    "limit=1001": "query.limit",
    "limit=ten": "query.limit",
    "status=done": "query.status",
    "label=colour": "query.label.0",
    "statu=queued": "query.statu",
    "q=%00": "query.q",
    "owner=a%0ab": "query.owner",
    "after=" + "x" * 65: "query.after",
}


def test_a_query_that_cannot_be_meant_names_its_parameter(client: httpx.Client) -> None:
    for query, field in UNMEANT_QUERIES.items():
        answer = client.get(f"/jobs?{query}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), query
        assert answer.json()["errors"][0]["field"] == field
        assert answer.json()["errors"][0]["fix"]


def test_page_limits_hold_at_their_edge(client: httpx.Client) -> None:
    assert client.get("/jobs?limit=1000").status_code == 200
    assert client.get("/jobs?limit=1").status_code == 200


def test_a_tag_spares_the_unchanged_job(client: httpx.Client, submit: Submit) -> None:
    job_id = submit()
    first = client.get(f"/jobs/{job_id}")
    tag = first.headers["etag"]
    unchanged = client.get(f"/jobs/{job_id}", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    client.post(f"/jobs/{job_id}/cancel")
    changed = client.get(f"/jobs/{job_id}", headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")
    assert changed.json()["cursor"] > first.json()["cursor"]


def test_what_is_not_there_is_404_with_one_body(client: httpx.Client) -> None:
    bodies: set[str] = set()
    for job_id in ("0193a7b2-0000-7000-8000-000000000000", "x", "%00", "..%2f..", "'; --", "a" * 5000):
        for rest in ("", "/attempts", "/events", "/checkpoints", "/logs", "/metrics", "/stream"):
            answer = client.get(f"/jobs/{job_id}{rest}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (job_id, rest)
            assert answer.headers["content-type"] == "application/problem+json"
            if "/" not in job_id.replace("%2f", "/"):
                bodies.add(answer.json()["detail"])
    assert bodies == {"No such job."}


def test_cancelling_a_queued_job_ends_it_and_again_is_no_error(client: httpx.Client, submit: Submit) -> None:
    job_id = submit()
    for _ in range(2):
        answer = client.post(f"/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"], answer.json()["intent"]) == (202, "cancelled", "cancel")


def test_cancelling_a_running_job_asks_and_says_so(client: httpx.Client, running: Attempt) -> None:
    answer = client.post(f"/jobs/{running.job_id}/cancel", json={})
    assert (answer.status_code, answer.json()["status"], answer.json()["intent"]) == (202, "running", "cancel")
    assert answer.json()["status_reason"].startswith("cancelling")


def test_a_finished_job_cannot_be_cancelled(client: httpx.Client, running: Attempt, database: Database) -> None:
    close(database, running, ExitReason.COMPLETED)
    answer = client.post(f"/jobs/{running.job_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_pause_and_resume_of_a_queued_job(client: httpx.Client, submit: Submit) -> None:
    job_id = submit()
    for verb, status, intent in (("pause", "paused", "pause"), ("resume", "queued", "run")):
        for _ in range(2):
            answer = client.post(f"/jobs/{job_id}/{verb}")
            assert (answer.status_code, answer.json()["status"], answer.json()["intent"]) == (202, status, intent)


def test_a_running_job_is_paused_by_its_intent(client: httpx.Client, running: Attempt, database: Database) -> None:
    answer = client.post(f"/jobs/{running.job_id}/pause")
    assert (answer.status_code, answer.json()["status"], answer.json()["intent"]) == (202, "running", "pause")
    assert answer.json()["status_reason"].startswith("pausing")
    close(database, running, ExitReason.PAUSED)
    assert client.get(f"/jobs/{running.job_id}").json()["status"] == "paused"
    assert client.post(f"/jobs/{running.job_id}/resume").json()["status"] == "queued"


def test_retry_is_for_what_failed_or_was_cancelled(client: httpx.Client, running: Attempt, database: Database) -> None:
    close(database, running, ExitReason.USER_ERROR, message="rank 0 failed: ValueError: bad")
    for _ in range(2):
        answer = client.post(f"/jobs/{running.job_id}/retry")
        assert (answer.status_code, answer.json()["status"], answer.json()["finished_at"]) == (202, "queued", None)


@pytest.mark.parametrize("verb", ["pause", "resume", "retry"])
def test_a_job_that_succeeded_is_left_alone(
    client: httpx.Client, running: Attempt, database: Database, verb: str
) -> None:
    close(database, running, ExitReason.COMPLETED)
    answer = client.post(f"/jobs/{running.job_id}/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_a_running_job_says_where_and_how_far(client: httpx.Client, running: Attempt, database: Database) -> None:
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        jobs.progress(session, job, step=40, total_steps=300, phase="train", eta_s=95.2)
    job = client.get(f"/jobs/{running.job_id}").json()
    assert job["status_reason"] == "training on a, cards 0–1"
    assert job["progress"] == {
        "step": 40,
        "total_steps": 300,
        "fraction": pytest.approx(40 / 300),
        "eta_s": 95.2,
        "phase": "train",
    }
    assert job["wait"] is None
    attempt = job["attempt"]
    assert (attempt["number"], attempt["host"], attempt["devices"], attempt["status"]) == (1, "a", [0, 1], "running")
    assert client.get(f"/jobs/{running.job_id}/attempts").json() == {"data": [attempt]}
    assert client.get("/jobs").json()["data"] == [job]


def test_a_failed_job_tells_the_rank_the_reason_and_the_last_lines(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    lines = [f"line {number}" for number in range(30)]
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        data = "\n".join([*lines, "ValueError: \x1b]0;no\x07 \x1b[31mbad\x1b[0m"]).encode() + b"\n"
        logs.append(session, job, attempt_id=running.id, rank=1, offset=0, data=data)
    close(database, running, ExitReason.USER_ERROR, message="rank 1 failed: ValueError: bad", failing_rank=1)
    job = client.get(f"/jobs/{running.job_id}").json()
    assert job["status"] == "failed"
    assert job["status_reason"] == (
        "rank 1 failed: ValueError: bad; look at the log, correct the spec or the data and submit it again"
    )
    assert job["log_tail"] == [*lines[11:], "ValueError: \ufffd]0;no\ufffd \x1b[31mbad\x1b[0m"]
    assert job["attempt"]["exit_reason"] == "user_error"


def test_a_job_that_was_refused_before_its_launch_has_no_log_to_look_at(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    close(database, running, ExitReason.USER_ERROR, message="train.train_file: there is no such file")
    reason = client.get(f"/jobs/{running.job_id}").json()["status_reason"]
    assert reason == "train.train_file: there is no such file; correct the spec or the data and submit it again"


def test_a_failure_names_its_rank_once(client: httpx.Client, running: Attempt, database: Database) -> None:
    close(database, running, ExitReason.DIVERGED, message="rank 0 diverged: the loss is NaN.", failing_rank=0)
    reason = client.get(f"/jobs/{running.job_id}").json()["status_reason"]
    assert reason.startswith("rank 0 diverged: the loss is NaN; ")
    assert "learning_rate" in reason


def test_a_retry_says_when_and_why(client: httpx.Client, running: Attempt, database: Database) -> None:
    close(database, running, ExitReason.INFRA, message="rank 0 was killed by signal 9")
    job = client.get(f"/jobs/{running.job_id}").json()
    assert job["status"] == "queued"
    assert job["status_reason"].startswith("retrying in ")
    assert job["status_reason"].endswith("attempt 1 failed: rank 0 was killed by signal 9")


def test_a_finished_job_shows_its_result_and_no_infinity(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    result = {"perplexity": 52.1, "initial_perplexity": 4100.9, "fps": 120.3, "train_loss": float("inf"), "extra": 1}
    close(database, running, ExitReason.COMPLETED, result=result)
    job = client.get(f"/jobs/{running.job_id}").json()
    assert job["status_reason"] == "finished: perplexity 52.10, from 4,100.90"
    assert job["result"]["perplexity"] == 52.1
    assert job["result"]["train_loss"] is None
    assert job["result"]["fps_wall"] is None
    assert "extra" not in job["result"]


def test_events_are_read_in_pages_by_sequence(client: httpx.Client, running: Attempt) -> None:
    url = f"/jobs/{running.job_id}/events"
    everything = client.get(url).json()
    assert [event["seq"] for event in everything["data"]] == list(range(1, len(everything["data"]) + 1))
    assert everything["data"][0]["kind"] == "submitted"
    assert (everything["has_more"], everything["next"]) == (False, None)
    first = client.get(url, params={"limit": 2}).json()
    rest = client.get(url, params={"after": first["next"]}).json()
    assert first["has_more"] is True
    assert first["data"] + rest["data"] == everything["data"]


def test_checkpoints_are_listed_with_their_attempt(client: httpx.Client, running: Attempt, database: Database) -> None:
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        checkpoints.publish(
            session, job, attempt_id=running.id, step=100, dir="checkpoints/step-100", manifest_sha256="0" * 64
        )
    (one,) = client.get(f"/jobs/{running.job_id}/checkpoints").json()["data"]
    assert (one["attempt"], one["step"], one["dir"]) == (1, 100, "checkpoints/step-100")


def test_hosts_show_their_devices_and_holders(client: httpx.Client, running: Attempt) -> None:
    (host,) = client.get("/hosts").json()["data"]
    assert (host["name"], host["status"], host["device_type"]) == ("a", "online", "cpu")
    assert [device["state"] for device in host["devices"]] == ["held", "held", "free", "free"]
    assert host["devices"][0] == {
        "index": 0,
        "name": "slot",
        "state": "held",
        "cordoned": False,
        "health": None,
        "temperature_c": None,
        "utilization": None,
        "memory_used_bytes": None,
        "memory_total_bytes": None,
        "unfit_reason": None,
        "job_id": running.job_id,
        "owner": "admin",
        "attempt": 1,
    }


def test_hosts_show_what_their_cards_read_and_why_one_is_left_out(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    assert client.get(f"/jobs/{running.job_id}/attempts").json()["data"][0]["simulated"] is False
    with database.write() as session:
        device_health.observe(
            session, "a", [Reading(3, "alarm", 93.0, 7.5, 3 << 30, 64 << 30, ailment="it is sick")], seen=()
        )
    device = client.get("/hosts").json()["data"][0]["devices"][3]
    assert (device["health"], device["temperature_c"], device["utilization"]) == ("alarm", 93.0, 7.5)
    assert (device["memory_used_bytes"], device["memory_total_bytes"]) == (3 << 30, 64 << 30)
    assert (device["state"], device["unfit_reason"]) == ("free", "it is sick")


def close(database: Database, attempt: Attempt, reason: ExitReason, *, message: str | None = None, **rest: Any) -> None:
    with database.write() as session:
        attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=reason, message=message, devices_clean=True, **rest
        )


class _locked:  # noqa: N801 - reads as the statement it is used in
    """Holds what a writer of jobs needs, from another connection."""

    def __init__(self, settings: Settings) -> None:
        url = make_url(settings.db_url)
        if url.get_backend_name() == "sqlite":
            self._connection: Any = sqlite3.connect(url.database or "", isolation_level=None)
            self._begin = "BEGIN IMMEDIATE"
        else:
            self._connection = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
            self._begin = "LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"

    def __enter__(self) -> None:
        self._connection.execute(self._begin)

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()
        self._connection.close()
