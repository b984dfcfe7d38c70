"""The life of jobs as a client sees it, over HTTP, while a stand-in for a worker acts through the store; predicted by the same oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import delete

from store import attempts, hosts, tokens
from store.db import Base, Database
from store.states import ExitReason
from tests.api.conftest import Running, all_turns_taken
from tests.lives import live
from tests.store import writing
from tests.store.oracle import TERMINAL, Oracle
from tests.store.writing import Holder

DEVICES = {"a": 4}
MAX_JOBS = 4
VERBS = ("cancel", "pause", "resume", "retry")
UNKNOWN = "0193aaaa-0000-7000-8000-000000000000"

JOBS = st.runner().flatmap(lambda life: st.sampled_from(list(life.oracle.jobs)))


class Wire(RuleBasedStateMachine):
    """A client that may do everything, a stranger who may see nothing of it, and a worker."""

    database: Database
    client: httpx.Client
    stranger: httpx.Client
    spec: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle(DEVICES)
        self.keys: dict[str, tuple[str, int]] = {}
        self.seen: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, str] = {}
        self.cursors: dict[str, tuple[int, int]] = {}
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "tokens":
                    session.execute(delete(table))
            slots = ["slot"] * DEVICES["a"]
            hosts.register(session, "a", device_type="cpu", device_names=slots, boot_id="b", versions={})
        self.submit(None, 1)
        self.submit("k", 2)
        self.work(next(iter(self.oracle.jobs)))

    @precondition(lambda self: len(self.oracle.jobs) < MAX_JOBS)
    @rule(key=st.sampled_from([None, "k", "l"]), num_devices=st.integers(1, 2))
    def submit(self, key: str | None, num_devices: int) -> None:
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.client.post("/jobs", json=self.spec | {"num_devices": num_devices}, headers=headers)
        known = self.keys.get(key or "")
        if known is None:
            assert answer.status_code == 201, answer.text
            assert "idempotent-replay" not in answer.headers
            self.oracle.submit(answer.json()["id"], num_devices=num_devices)
            self.keys |= {key: (answer.json()["id"], num_devices)} if key else {}
        elif known[1] == num_devices:
            assert (answer.status_code, answer.headers["idempotent-replay"]) == (200, "true")
            assert answer.json()["id"] == known[0]
        else:
            assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
            return
        assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
        self._check(answer.json())

    @rule(num_devices=st.integers(1, 2))
    def ask_what_would_be(self, num_devices: int) -> None:
        with all_turns_taken():  # an estimate takes a second, and its files do not change here
            answer = self.client.post("/jobs", params={"dry_run": True}, json=self.spec | {"num_devices": num_devices})
        assert answer.status_code == 200, answer.text

    @rule(job_id=JOBS, verb=st.sampled_from(VERBS), times=st.integers(1, 2))
    def ask(self, job_id: str, verb: str, times: int) -> None:
        """Once or twice: what was accepted is accepted again, and changes nothing more."""
        for _ in range(times):
            refusal = getattr(self.oracle, verb)(job_id)
            answer = self.client.post(f"/jobs/{job_id}/{verb}")
            if refusal:
                assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition"), verb
            else:
                assert answer.status_code == 202, answer.text
                self._check(answer.json())

    @rule(job_id=JOBS, verb=st.sampled_from([*VERBS, ""]))
    def be_told_nothing(self, job_id: str, verb: str) -> None:
        """A stranger's request for a job, and anybody's for one that is not there, look alike."""
        for client, name in ((self.stranger, job_id), (self.client, UNKNOWN)):
            answer = client.post(f"/jobs/{name}/{verb}") if verb else client.get(f"/jobs/{name}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    @rule(job_id=JOBS)
    def get_if_it_changed(self, job_id: str) -> None:
        tag = self.tags.get(job_id)
        answer = self.client.get(f"/jobs/{job_id}", headers={"If-None-Match": tag} if tag else {})
        before = self.seen.get(job_id)
        if answer.status_code == 304:
            assert answer.headers["etag"] == tag
            assert before is not None
            again = self.client.get(f"/jobs/{job_id}").json()
            # How long a retry still waits is told by the second; that is no change of the job.
            assert again | {"status_reason": ""} == before | {"status_reason": ""}
            return
        assert answer.status_code == 200, answer.text
        assert answer.headers["etag"] != tag
        assert before is None or answer.json()["cursor"] > before["cursor"]
        self.tags[job_id], self.seen[job_id] = answer.headers["etag"], answer.json()
        self._check(answer.json())

    @rule(status=st.sampled_from(["queued", "running", "paused", "succeeded", "failed", "cancelled"]))
    def list_by_status(self, status: str) -> None:
        wanted = [job_id for job_id, job in self.oracle.jobs.items() if job.status == status]
        page = self.client.get("/jobs", params={"status": status, "limit": MAX_JOBS}).json()
        assert ([job["id"] for job in page["data"]], page["has_more"]) == (wanted[::-1], False)

    @rule(job_id=JOBS)
    def work(self, job_id: str) -> None:
        """Place the job where it may be placed, and begin."""
        free = sorted(index for (_, index), device in self.oracle.devices.items() if device.can_be_given)
        devices, placed = free[: self.oracle.jobs[job_id].num_devices], list[str]()
        refusal = writing.tries(
            self.database,
            lambda s: placed.append(attempts.place(s, job_id, host="a", device_indices=devices).id),
        )
        assert refusal == self.oracle.refusal_to_place(job_id, "a", devices)
        if placed and not refusal:
            self.oracle.place(job_id, placed[0], "a", devices)
            self.oracle.begin(placed[0])
            begun = writing.tries(self.database, lambda s: attempts.begin(s, placed[0], job_id=job_id, boot_id="b"))
            assert begun is None

    @rule(job_id=JOBS, stale=st.booleans(), step=st.integers(1, 9))
    def report(self, job_id: str, stale: bool, step: int) -> None:
        for holder in self._holders(job_id, stale=stale):
            refusal = writing.tries(
                self.database, lambda s, of=holder: writing.ingest(s, of, b"line\n", step=step, value=0.5)
            )
            assert refusal == self.oracle.ingest(holder.attempt_id, b"line\n", step=step, value=0.5)
            refusal = writing.tries(self.database, lambda s, of=holder: writing.publish(s, of, step))
            assert refusal == self.oracle.publish(holder.attempt_id, step)

    @rule(job_id=JOBS, stale=st.booleans(), reason=st.just(ExitReason.COMPLETED) | st.sampled_from(ExitReason))
    def finish(self, job_id: str, stale: bool, reason: ExitReason) -> None:
        for holder in self._holders(job_id, stale=stale):
            refusal = writing.tries(self.database, lambda s, of=holder: writing.close(s, of, reason))
            assert refusal == self.oracle.close(holder.attempt_id, reason.value, clean=True)

    @invariant()
    def what_is_read_is_as_predicted(self) -> None:
        page = self.client.get("/jobs", params={"limit": MAX_JOBS}).json()
        assert [job["id"] for job in page["data"]] == list(self.oracle.jobs)[::-1]
        for job in page["data"]:
            self._check(job)
            # What is not read again has not changed: its cursor says so, and the end of the life looks at everything.
            if self.cursors.get(job["id"]) != (job["cursor"], len(self.oracle.jobs[job["id"]].timeline)):
                self._check_history(job["id"])
                self.cursors[job["id"]] = (job["cursor"], len(self.oracle.jobs[job["id"]].timeline))
        assert self.stranger.get("/jobs").json()["data"] == []
        (host,) = self.client.get("/hosts").json()["data"]
        seen = {("a", one["index"]): (one["state"], one["job_id"], one["attempt"]) for one in host["devices"]}
        assert seen == {
            place: (
                device.state,
                *((one.job_id, one.number) if (one := self.oracle.attempts.get(device.holder or "")) else (None, None)),
            )
            for place, device in self.oracle.devices.items()
        }

    def teardown(self) -> None:
        for job_id in self.oracle.jobs:
            self._check_history(job_id)

    def _check(self, job: dict[str, Any]) -> None:
        expected = self.oracle.jobs[job["id"]]
        assert (job["status"], job["intent"], job["num_devices"]) == (
            expected.status,
            expected.intent,
            expected.num_devices,
        )
        assert (job["finished_at"] is not None) == (expected.status in TERMINAL)
        assert (job["started_at"] is not None) == bool(expected.attempts)
        assert (job["wait"] is not None) == (expected.status == "queued")
        assert (job["log_tail"] is not None) == (expected.status == "failed")
        assert job["status_reason"]
        assert (job["progress"] or {"step": None})["step"] == expected.step
        assert (job["attempt"] is not None) == bool(expected.attempts)
        if job["attempt"]:
            self._check_attempt(job["attempt"], expected.attempts[-1])

    def _check_attempt(self, shown: dict[str, Any], attempt_id: str) -> None:
        attempt = self.oracle.attempts[attempt_id]
        assert (shown["number"], shown["host"], shown["status"], shown["exit_reason"]) == (
            attempt.number,
            attempt.host,
            attempt.status,
            attempt.exit_reason,
        )
        assert shown["devices"] == sorted(attempt.devices)
        assert (shown["finished_at"] is None) == attempt.is_open

    def _check_history(self, job_id: str) -> None:
        expected = self.oracle.jobs[job_id]
        events = self.client.get(f"/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]
        assert [event["kind"] for event in events] == expected.timeline
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        history = self.client.get(f"/jobs/{job_id}/attempts").json()["data"]
        assert len(history) == len(expected.attempts)
        for shown, attempt_id in zip(history, expected.attempts, strict=True):
            self._check_attempt(shown, attempt_id)
        saved = self.client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
        assert sorted(one["step"] for one in saved) == sorted(expected.best_first)

    def _holders(self, job_id: str, *, stale: bool) -> list[Holder]:
        """Who has the newest attempt, or, `stale`, had the first one; nobody yet, where it was never placed."""
        known = self.oracle.jobs[job_id].attempts
        return [Holder(job_id, known[0 if stale else -1])] if known else []


@pytest.fixture
def stranger(database: Database, server: Running) -> Iterator[httpx.Client]:
    with database.write() as session:
        secret = tokens.mint(session, kind="token", owner="eve", scope="member")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {secret}"}, timeout=20) as client:
        yield client


@pytest.mark.timeout(600)
def test_any_life_looks_as_the_documentation_says(
    database: Database, server: Running, client: httpx.Client, stranger: httpx.Client, spec: dict[str, Any]
) -> None:
    for one in (database, server.plane.database):
        writing.forget_the_disk(one)
    known = {"database": database, "client": client, "stranger": stranger, "spec": spec}
    live(type("WireHere", (Wire,), known), lives=12 if database.is_sqlite else 6, steps=30)
