"""The life of jobs and attempts under any order of calls, checked after every step against a small model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from store import attempts, checkpoints, events, hosts, jobs, logs
from store.db import Base, Database
from store.errors import IllegalTransition, LeaseLost, PlacementConflict
from store.jobs import NewJob
from store.models import Attempt, Job
from store.states import ExitReason, Intent, JobStatus

NUM_DEVICES = 3
RETRIED = {
    "infra": 5, "device_error": 5, "storage": 5, "lease_expired": 5, "launch_error": 5, "hung": 3, "out_of_memory": 2,
}  # fmt: skip
"""From the design's closing table, written down a second time on purpose."""


@dataclass
class Expected:
    """What the model says of one job."""

    num_devices: int
    status: str = "queued"
    intent: str = "run"
    strikes: int = 0
    open_attempt: str | None = None
    begun: bool = False
    devices: frozenset[int] = frozenset()
    log: dict[str, bytes] = field(default_factory=dict[str, bytes])
    checkpoints: int = 0

    @property
    def terminal(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")


class Life(RuleBasedStateMachine):
    database: Database

    job_ids = Bundle("job_ids")
    holders = Bundle("holders")
    """Every (job, attempt) ever placed: the open ones and all that were closed since."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Expected] = {}
        self.unverified: dict[str, frozenset[int]] = {}
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        with self.database.write() as session:
            hosts.register(
                session, "a", device_type="cpu", device_names=["slot"] * NUM_DEVICES, boot_id="b", versions={}
            )

    @rule(target=job_ids, num_devices=st.integers(1, 2))
    def submit(self, num_devices: int) -> str:
        with self.database.write() as session:
            spec = NewJob(name="n", preset="demo", train={}, num_devices=num_devices, device_type="cpu")
            job, _ = jobs.submit(session, spec, owner="admin")
        self.model[job.id] = Expected(num_devices=num_devices)
        return job.id

    @rule(target=holders, job_id=job_ids, devices=st.sets(st.integers(0, NUM_DEVICES - 1), min_size=1, max_size=2))
    def place(self, job_id: str, devices: set[int]) -> Any:
        job = self.model[job_id]
        fits = job.status == "queued" and len(devices) == job.num_devices and not devices & self._taken()
        try:
            with self.database.write() as session:
                attempt = attempts.place(session, job_id, host="a", device_indices=sorted(devices))
        except PlacementConflict:
            assert not fits
            return multiple()
        assert fits
        job.status, job.open_attempt, job.begun, job.devices = "running", attempt.id, False, frozenset(devices)
        job.log[attempt.id] = b""
        return (job_id, attempt.id)

    @rule(holder=holders)
    def begin(self, holder: tuple[str, str]) -> None:
        job = self.model[holder[0]]
        may = job.open_attempt == holder[1] and not job.begun
        assert self._writes(lambda s: attempts.begin(s, holder[1], job_id=holder[0], boot_id="b")) == may
        job.begun = job.begun or may

    @rule(holder=holders)
    def renew(self, holder: tuple[str, str]) -> None:
        seen: list[Intent] = []
        wrote = self._writes(lambda s: seen.append(attempts.renew(s, holder[1], job_id=holder[0]).intent))
        assert wrote == (self.model[holder[0]].open_attempt == holder[1])
        assert [intent.value for intent in seen] == [self.model[holder[0]].intent] * wrote

    @rule(holder=holders, data=st.binary(min_size=1, max_size=5))
    def ingest(self, holder: tuple[str, str], data: bytes) -> None:
        job_id, attempt_id = holder

        def write(session: Any) -> None:
            job = attempts.renew(session, attempt_id, job_id=job_id)
            offset = logs.ends(session, attempt_id).get(0, 0)
            logs.append(session, job, attempt_id=attempt_id, rank=0, offset=offset, data=data)

        wrote = self._writes(write)
        assert wrote == (self.model[job_id].open_attempt == attempt_id)
        if wrote:
            self.model[job_id].log[attempt_id] += data

    @rule(holder=holders)
    def publish(self, holder: tuple[str, str]) -> None:
        job_id, attempt_id = holder
        expected = self.model[job_id]
        step = expected.checkpoints + 1

        def write(session: Any) -> None:
            job = attempts.renew(session, attempt_id, job_id=job_id)
            checkpoints.publish(session, job, attempt_id=attempt_id, step=step, dir="d", manifest_sha256="0" * 64)

        if self._writes(write):
            assert expected.open_attempt == attempt_id
            expected.strikes, expected.checkpoints = 0, step

    @rule(holder=holders, reason=st.sampled_from(ExitReason), clean=st.booleans())
    def close(self, holder: tuple[str, str], reason: ExitReason, clean: bool) -> None:
        job_id, attempt_id = holder
        expected = self.model[job_id]
        if reason is ExitReason.COMPLETED and expected.open_attempt == attempt_id and not expected.begun:
            return  # the only end that needs a beginning; test_states holds it
        wrote = self._writes(
            lambda s: attempts.close(s, attempt_id, job_id=job_id, reason=reason, message="why", devices_clean=clean)
        )
        assert wrote == (expected.open_attempt == attempt_id)
        if not wrote:
            return
        self._expect_closed(expected, reason.value)
        if not clean:
            self.unverified[attempt_id] = expected.devices
        expected.open_attempt, expected.devices = None, frozenset()

    @rule(holder=consumes(holders))
    def verify(self, holder: tuple[str, str]) -> None:
        """The host has looked: no process of the closed attempt is left."""
        if self.model[holder[0]].open_attempt != holder[1]:
            with self.database.write() as session:
                hosts.free(session, holder[1])
            self.unverified.pop(holder[1], None)

    @rule(job_id=job_ids)
    def cancel(self, job_id: str) -> None:
        expected = self.model[job_id]
        assert self._asks(jobs.cancel, job_id) == (expected.status not in ("succeeded", "failed"))
        if expected.status in ("queued", "paused"):
            expected.status = "cancelled"
        if expected.status in ("cancelled", "running"):
            expected.intent = "cancel"

    @rule(job_id=job_ids)
    def pause(self, job_id: str) -> None:
        expected = self.model[job_id]
        legal = not expected.terminal and expected.intent != "cancel"
        assert self._asks(jobs.pause, job_id) == legal
        if legal:
            expected.intent = "pause"
            expected.status = "paused" if expected.status == "queued" else expected.status

    @rule(job_id=job_ids)
    def resume(self, job_id: str) -> None:
        expected = self.model[job_id]
        legal = not expected.terminal and expected.intent != "cancel"
        assert self._asks(jobs.resume, job_id) == legal
        if legal and expected.intent == "pause":
            expected.intent = "run"
            expected.status = "queued" if expected.status == "paused" else expected.status

    @rule(job_id=job_ids)
    def retry(self, job_id: str) -> None:
        expected = self.model[job_id]
        again = expected.status in ("failed", "cancelled")
        idle = expected.status in ("queued", "running") and expected.intent != "cancel"
        assert self._asks(jobs.retry, job_id) == (again or idle)
        if again:
            expected.status, expected.intent, expected.strikes = "queued", "run", 0

    @rule(job_id=job_ids)
    def preempt(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.preempt(session, job_id, why="drain")
        expected = self.model[job_id]
        if expected.status == "running" and expected.intent == "run":
            expected.intent = "preempt"

    @invariant()
    def the_database_is_as_expected(self) -> None:
        with self.database.read() as session:
            for job in session.scalars(select(Job)):
                expected = self.model[job.id]
                assert (job.status.value, job.intent.value, job.strikes) == (
                    expected.status,
                    expected.intent,
                    expected.strikes,
                )
                open_ids = [one.id for one in attempts.of_job(session, job.id) if one.exit_reason is None]
                assert open_ids == ([expected.open_attempt] if expected.open_attempt else [])
                assert (job.status is JobStatus.RUNNING) == (len(open_ids) == 1)
                assert (job.finished_at is not None) == expected.terminal
                seqs = [event.seq for event in events.page(session, job.id, limit=10_000)]
                assert seqs == list(range(1, job.num_events + 1))
                for attempt_id, text in expected.log.items():
                    assert logs.read(session, attempt_id, rank=0, limit_bytes=1 << 20)[1] == text

    @invariant()
    def devices_are_where_expected(self) -> None:
        held = {index: job.open_attempt for job in self.model.values() for index in job.devices}
        left = {index: attempt_id for attempt_id, devices in self.unverified.items() for index in devices}
        with self.database.read() as session:
            (view,) = hosts.all_hosts(session)
            for one in view.devices:
                index = one.device.index
                wanted = "held" if index in held else "unverified" if index in left else "free"
                assert (one.device.state.value, one.device.attempt_id) == (wanted, held.get(index) or left.get(index))

    def _expect_closed(self, expected: Expected, reason: str) -> None:
        if reason == "completed":
            expected.status = "succeeded"
        elif expected.intent == "cancel":
            expected.status = "cancelled"
        elif expected.intent == "pause":
            expected.status = "paused"
        elif reason in ("preempted", "paused"):
            expected.status = "queued"
        elif reason in RETRIED:
            expected.strikes += 1
            expected.status = "queued" if expected.strikes < RETRIED[reason] else "failed"
        else:
            expected.status = "failed"
        if expected.status == "queued":
            expected.intent = "run"

    def _taken(self) -> set[int]:
        return {index for job in self.model.values() for index in job.devices} | {
            index for devices in self.unverified.values() for index in devices
        }

    def _writes(self, write: Callable[[Any], object]) -> bool:
        try:
            with self.database.write() as session:
                write(session)
        except LeaseLost:
            return False
        return True

    def _asks(self, ask: Callable[[Any, str], object], job_id: str) -> bool:
        try:
            with self.database.write() as session:
                ask(session, job_id)
        except IllegalTransition:
            return False
        return True


@pytest.mark.timeout(300)
def test_any_life_is_as_the_design_says(database: Database) -> None:
    machine = type("LifeHere", (Life,), {"database": database})
    examples = 40 if database.is_sqlite else 15
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_completing_needs_a_beginning(database: Database, host: str, submit: Callable[[], str]) -> None:
    job_id = submit()
    with database.write() as session:
        attempt: Attempt = attempts.place(session, job_id, host=host, device_indices=[0, 1])
    with pytest.raises(IllegalTransition), database.write() as session:
        attempts.close(
            session, attempt.id, job_id=job_id, reason=ExitReason.COMPLETED, message=None, devices_clean=True
        )
