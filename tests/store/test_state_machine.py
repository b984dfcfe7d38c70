"""The life of jobs and attempts under any order of calls, compared after every step with what `oracle.py` predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from sqlalchemy import delete
from sqlalchemy.orm import Session

from linux import proc
from store import attempts, checkpoints, db, hosts, jobs, planning_queue
from store.db import Base, Database
from store.errors import LeaseLost
from store.jobs import NewJob
from store.settings import Settings
from store.states import TRIES, ExitReason
from tests.lives import live
from tests.store import reading, writing
from tests.store.fleet import DEVICES, ILL, WELL, Fleet
from tests.store.oracle import Judge, Oracle, Queue
from tests.store.writing import Holder
from worker.agent import scheduling as planner_module
from worker.agent.lease_monitor import Sweeper
from worker.agent.scheduling import Planner

MAX_JOBS = 5
NO_QUOTA = 99

JOBS = st.runner().flatmap(lambda life: st.sampled_from(list(life.oracle.jobs)))
HOLDERS = st.runner().flatmap(lambda life: st.sampled_from(life.holders))

TRY = st.tuples(st.sampled_from(sorted(TRIES)), st.none() | st.integers(-1, 1))
"""How a try ends, and the step that it saves before, counted from the best so far; None: it never begins."""


class Torn(Exception):
    """What a transaction ends with whose writer dies in it."""


@dataclass
class Clock:
    """Seconds that only the machine lets pass, and a wall clock that jumps as it likes."""

    seconds: float = 1000.0
    wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self, zone: tzinfo | None = None) -> datetime:
        return (self.wall + timedelta(seconds=self.seconds)).astimezone(zone)


class Life(Fleet):
    """Begins in the middle of things: Hypothesis leaves out whole rules of a life, and most would stay empty."""

    settings: Settings
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle(DEVICES)
        self.keys: dict[str, tuple[str, str]] = {}
        self.before: dict[str, reading.JobRows] = {}
        self.clock.__init__()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
            for name, number in DEVICES.items():
                hosts.register(
                    session, name, device_type="cpu", device_names=["slot"] * number, boot_id="b", versions={}
                )
        self.quota = 3
        self.planner, self.queue = Planner(self.database, quotas={"*": self.quota}), Queue()
        self.sweeper, self.judge = Sweeper(self.settings, self.database), Judge(self.settings.lease_s)
        for num_devices in (2, 1):
            self.submit(num_devices)
        for job_id in self.oracle.jobs:
            self.place_where_there_is_room(job_id)
        self.launch(self.holders[0])
        # One more than its owner may hold: it waits from the start.
        self.submit(1)
        self.plan(by_another=False, quota=NO_QUOTA)

    @property
    def holders(self) -> list[Holder]:
        """Of every attempt there ever was, the newest first; those that are open are named twice."""
        every = [(Holder(one.job_id, attempt_id), one.is_open) for attempt_id, one in self.oracle.attempts.items()]
        return [holder for holder, is_open in reversed(every) for _ in range(1 + is_open)]

    @precondition(lambda self: len(self.oracle.jobs) < MAX_JOBS)
    @rule(num_devices=st.integers(1, 2))
    def submit(self, num_devices: int) -> None:
        with self.database.write() as session:
            job, _ = jobs.submit(session, _spec(num_devices), owner="admin")
        self.oracle.submit(job.id, num_devices=num_devices)

    @precondition(lambda self: len(self.oracle.jobs) < MAX_JOBS)
    @rule(key=st.sampled_from("kl"), body=st.sampled_from("xy"))
    def submit_with_a_key(self, key: str, body: str) -> None:
        answers: list[tuple[str, bool]] = []

        def submit(session: Session) -> None:
            job, replayed = jobs.submit(session, _spec(1), owner="admin", idempotency_key=key, request_sha256=body)
            answers.append((job.id, replayed))

        refusal = self._tries(submit)
        known = self.keys.get(key)
        if known is not None:
            wanted = ([(known[0], True)], None) if known[1] == body else ([], "IdempotencyConflict")
            assert (answers, refusal) == wanted
            return
        ((job_id, replayed),) = answers
        assert not replayed
        self.keys[key] = (job_id, body)
        self.oracle.submit(job_id, num_devices=1)

    @rule(
        job_id=JOBS,
        host=st.sampled_from(sorted(DEVICES)),
        devices=st.sets(st.integers(0, max(DEVICES.values())), min_size=1, max_size=2),
    )
    def place(self, job_id: str, host: str, devices: set[int]) -> None:
        placed: list[str] = []
        refusal = self._tries(
            lambda s: placed.append(attempts.place(s, job_id, host=host, device_indices=sorted(devices)).id)
        )
        assert refusal == self.oracle.refusal_to_place(job_id, host, devices)
        if not refusal:
            self.oracle.place(job_id, placed[0], host, devices)

    @rule(job_id=JOBS, more=st.sampled_from([0, 0, 1, -1]), anywhere=st.booleans())
    def place_where_there_is_room(self, job_id: str, more: int = 0, anywhere: bool = False) -> None:
        """Devices drawn at random are seldom those that are free. `anywhere`: also on a host that takes no jobs."""
        if room := self._room(self.oracle.jobs[job_id].num_devices + more, anywhere=anywhere):
            self.place(job_id, *room)

    @rule(why=st.sampled_from(["drained", "cordoned", "ill"]))
    def place_on_what_was_withheld_meanwhile(self, why: str) -> None:
        """After the planner saw it free."""
        queued = [job_id for job_id, job in self.oracle.jobs.items() if job.status == "queued"]
        if queued and (room := self._room(self.oracle.jobs[queued[0]].num_devices)):
            name, index = room[0], max(room[1])
            withhold = {
                "drained": lambda is_so: self.drain_or_undrain(name, is_so),
                "cordoned": lambda is_so: self.cordon_or_uncordon((name, index), is_so),
                "ill": lambda is_so: self.look_at_a_card((name, index), ILL if is_so else WELL, in_time=True),
            }[why]
            withhold(True)
            self.place(queued[0], *room)
            withhold(False)

    @rule(by_another=st.booleans(), quota=st.sampled_from([NO_QUOTA, 3, 2]))
    def plan(self, by_another: bool, quota: int) -> None:
        if by_another:
            self.planner, self.queue, self.quota = Planner(self.database, quotas={"*": quota}), Queue(), quota
        left_s = self.queue.left_s(self.clock.seconds, self.oracle.jobs)
        # A large job may keep others waiting, by a promise; what has room before it was asked must not be kept by nothing.
        unsettled = self.oracle.unsettled
        may_go = {one for one, seconds in left_s.items() if seconds <= 0} - unsettled
        all_fit = all(self._may_start(one) for one in may_go)
        done = self.planner.run()
        for placed in done.placed:
            assert left_s[placed.job_id] <= 0, "it was to wait longer"
            assert placed.job_id not in unsettled, "a process of its last attempt may be left"
            with self.database.read() as session:
                devices = attempts.get(session, placed.attempt_id).devices
            assert self.oracle.refusal_to_place(placed.job_id, placed.host, devices) is None
            self.oracle.place(placed.job_id, placed.attempt_id, placed.host, devices)
            assert self.oracle.num_held <= self.quota, "its owner may not hold so much"
        assert done.placed or not all_fit or not may_go, "there is room"
        held = [seconds for seconds in left_s.values() if seconds > 0]
        assert done.again_in_s == (pytest.approx(min(held)) if held else None)
        self._who_waits_knows_why()

    @rule(holder=HOLDERS)
    def launch(self, holder: Holder) -> None:
        refusal = self._tries(lambda s: attempts.begin(s, holder.attempt_id, job_id=holder.job_id, boot_id="b"))
        assert refusal == self.oracle.begin(holder.attempt_id)

    @rule(holder=HOLDERS, ran_s=st.none() | st.integers(0, 50))
    def renew(self, holder: Holder, ran_s: int | None) -> None:
        seen: list[str] = []
        refusal = self._tries(
            lambda s: seen.append(attempts.renew(s, holder.attempt_id, job_id=holder.job_id, ran_s=ran_s).intent.value)
        )
        assert refusal == self.oracle.renew(holder.attempt_id, ran_s=ran_s)
        assert seen == ([] if refusal else [self.oracle.jobs[holder.job_id].intent])

    @rule(holder=HOLDERS, data=st.binary(min_size=1, max_size=5), step=st.integers(1, 9), value=st.floats(0, 1))
    def ingest(self, holder: Holder, data: bytes, step: int, value: float) -> None:
        refusal = self._tries(lambda s: writing.ingest(s, holder, data, step=step, value=value))
        assert refusal == self.oracle.ingest(holder.attempt_id, data, step=step, value=value)

    @rule(holder=HOLDERS, data=st.binary(min_size=1, max_size=5), step=st.integers(1, 9))
    def die_in_the_middle_of_it(self, holder: Holder, data: bytes, step: int) -> None:
        def write(session: Session) -> None:
            writing.ingest(session, holder, data, step=step, value=0.5)
            writing.publish(session, holder, step)
            session.flush()
            raise Torn

        with pytest.raises((Torn, LeaseLost)), self.database.write() as session:
            write(session)

    @rule(holder=HOLDERS)
    def ingest_again_what_is_there(self, holder: Holder) -> None:
        if self.oracle.attempts[holder.attempt_id].log:
            with pytest.raises((ValueError, LeaseLost)), self.database.write() as session:
                writing.ingest_from_the_start(session, holder)

    @rule(holder=HOLDERS, beyond=st.integers(-1, 2))
    def publish(self, holder: Holder, beyond: int) -> None:
        best = max((one.step for one in self.oracle.jobs[holder.job_id].checkpoints), default=0)
        step = max(1, best + beyond)
        refusal = self._tries(lambda s: writing.publish(s, holder, step))
        assert refusal == self.oracle.publish(holder.attempt_id, step)

    @rule(holder=HOLDERS, data=st.data())
    def condemn(self, holder: Holder, data: st.DataObject) -> None:
        known = self.oracle.jobs[holder.job_id].checkpoints
        if known:
            one = data.draw(st.sampled_from(known))
            refusal = self._tries(lambda s: writing.condemn(s, holder, saved_by=one.attempt_id, step=one.step))
            assert refusal == self.oracle.condemn(holder.attempt_id, one)

    @rule(holder=HOLDERS, reason=st.just(ExitReason.COMPLETED) | st.sampled_from(ExitReason), clean=st.booleans())
    def finish(self, holder: Holder, reason: ExitReason, clean: bool) -> None:
        refusal = self._tries(lambda s: writing.close(s, holder, reason, clean=clean))
        assert refusal == self.oracle.close(holder.attempt_id, reason.value, clean=clean)

    @rule(job_id=JOBS)
    def finish_before_a_cancel_comes_through(self, job_id: str) -> None:
        if self.oracle.jobs[job_id].status == "running":
            holder = Holder(job_id, self.oracle.jobs[job_id].attempts[-1])
            self.launch(holder)
            self.cancel(job_id)
            self.finish(holder, ExitReason.COMPLETED, clean=True)

    @rule(holder=HOLDERS, index=st.integers(0, 2))
    def blame_a_device(self, holder: Holder, index: int) -> None:
        refusal = self._tries(lambda s: writing.blame(s, holder, index))
        assert refusal == self.oracle.blame(holder.attempt_id, index)

    @rule(holder=HOLDERS, ago=st.integers(0, 2))
    def judge_by_a_beat_of_a_while_ago(self, holder: Holder, ago: int) -> None:
        beat = self.oracle.attempts[holder.attempt_id].beat - ago
        refusal = self._tries(lambda s: writing.close(s, holder, ExitReason.LEASE_EXPIRED, clean=False, seen_beat=beat))
        wanted = "LeaseLost" if ago else self.oracle.close(holder.attempt_id, "lease_expired", clean=False)
        assert refusal == wanted

    @rule(job_id=JOBS, tries=st.lists(TRY, min_size=1, max_size=5))
    def try_again_and_again(self, job_id: str, tries: list[tuple[ExitReason, int | None]]) -> None:
        """Strikes add up only if the same job fails in a row, and are forgotten only if it fails, saves, and fails."""
        for reason, beyond in tries:
            if self.oracle.jobs[job_id].status == "queued":
                self.place_where_there_is_room(job_id)
            if self.oracle.jobs[job_id].status == "running":
                holder = Holder(job_id, self.oracle.jobs[job_id].attempts[-1])
                if beyond is not None:
                    self.launch(holder)
                    self.renew(holder, ran_s=7)
                    self.publish(holder, beyond)
                self.finish(holder, reason, clean=True)
                self.every_job_is_as_predicted()

    @rule(holder=HOLDERS, stuck=st.booleans())
    def verify(self, holder: Holder, stuck: bool) -> None:
        """Its host has looked at what a closed attempt left."""
        if not self.oracle.attempts[holder.attempt_id].is_open:
            with self.database.write() as session:
                (hosts.quarantine if stuck else hosts.free)(session, holder.attempt_id)
            self.oracle.verify(holder.attempt_id, stuck=stuck)

    @rule(job_id=JOBS)
    def cancel(self, job_id: str) -> None:
        assert self._tries(lambda s: jobs.cancel(s, job_id)) == self.oracle.cancel(job_id)

    @rule(job_id=JOBS)
    def pause(self, job_id: str) -> None:
        assert self._tries(lambda s: jobs.pause(s, job_id)) == self.oracle.pause(job_id)

    @rule(job_id=JOBS)
    def resume(self, job_id: str) -> None:
        assert self._tries(lambda s: jobs.resume(s, job_id)) == self.oracle.resume(job_id)

    @rule(job_id=JOBS)
    def retry(self, job_id: str) -> None:
        assert self._tries(lambda s: jobs.retry(s, job_id)) == self.oracle.retry(job_id)

    @rule(job_id=JOBS, heeds=st.booleans())
    def preempt(self, job_id: str, heeds: bool) -> None:
        assert self._tries(lambda s: jobs.preempt(s, job_id, why="drain")) is None
        self.oracle.preempt(job_id)
        if heeds and self.oracle.jobs[job_id].status == "running":
            self.finish(Holder(job_id, self.oracle.jobs[job_id].attempts[-1]), ExitReason.PREEMPTED, clean=True)

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 40.0]), hours=st.integers(-2, 2))
    def tick(self, seconds: float, hours: int) -> None:
        """Time passes, and the wall clock jumps."""
        self.clock.seconds += seconds
        self.clock.wall += timedelta(hours=hours)

    @rule(seconds=st.integers(1, 5), beating=st.sets(st.sampled_from(["a", "b", "attempts"])))
    def reap(self, seconds: int, beating: set[str]) -> None:
        """The judge looks once a second; of the others some go on beating meanwhile, and some do not."""
        for _ in range(seconds):
            self.tick(1.0, hours=seconds - 3)
            for name in sorted(beating - {"attempts"}):
                with self.database.write() as session:
                    hosts.beat(session, name)
                self.oracle.hosts[name].beat += 1
                if self.oracle.hosts[name].status == "lost":
                    self.oracle.hosts[name].status = "online"
            for attempt_id, attempt in self.oracle.attempts.items():
                if "attempts" in beating and attempt.is_open:
                    self.renew(Holder(attempt.job_id, attempt_id), None)
            self._judge()

    @invariant()
    def every_job_is_as_predicted(self) -> None:
        with self.database.read() as session:
            found = reading.jobs_of(session)
            for job_id, rows in found.items():
                expected = self.oracle.jobs[job_id]
                assert rows.facts == reading.predicted(expected)
                assert rows.timeline == expected.timeline
                before = self.before.get(job_id)
                if before is None or before.job.rev != rows.job.rev:
                    assert [one.step for one in checkpoints.newest_first(session, job_id)] == expected.best_first
                reading.check_shape(rows, before=before)
        assert set(found) == set(self.oracle.jobs)
        self.before = found

    @invariant()
    def every_attempt_is_as_predicted(self) -> None:
        with self.database.read() as session:
            assert reading.attempts_of(session) == self.oracle.attempts
            assert reading.hosts_of(session) == self.oracle.hosts
            assert reading.devices_of(session) == self.oracle.devices

    def _may_start(self, job_id: str) -> bool:
        num_devices = self.oracle.jobs[job_id].num_devices
        return self.oracle.num_held + num_devices <= self.quota and self._room(num_devices) is not None

    def _who_waits_knows_why(self) -> None:
        waiting = {job_id for job_id, job in self.oracle.jobs.items() if job.status == "queued"}
        with self.database.read() as session:
            assert all(jobs.get(session, job_id).wait_reason for job_id in waiting)
            places = planning_queue.positions(session, list(self.oracle.jobs)) if waiting else {}
        assert (places.keys(), sorted(places.values())) == (waiting, list(range(1, len(waiting) + 1)))

    def _room(self, num_devices: int, *, anywhere: bool = False) -> tuple[str, set[int]] | None:
        for name, host in self.oracle.hosts.items():
            free = [index for (of, index), one in self.oracle.devices.items() if of == name and one.can_be_given]
            if (host.takes_jobs or anywhere) and len(free) >= num_devices:
                return name, set(free[:num_devices])
        return None

    def _judge(self) -> None:
        beats = {name: attempt.beat for name, attempt in self.oracle.attempts.items() if attempt.is_open}
        dead = self.judge.look(
            self.clock.seconds, beats | {name: host.beat for name, host in self.oracle.hosts.items()}
        )
        expired = {one.attempt_id for one in self.sweeper.sweep()}
        assert expired == dead & beats.keys()
        for attempt_id in expired:
            self.oracle.close(attempt_id, "lease_expired", clean=False)
        for name in dead & self.oracle.hosts.keys():
            self.oracle.hosts[name].status = "lost"

    def _tries(self, write: Callable[[Session], object]) -> str | None:
        return writing.tries(self.database, write)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(proc, "boottime", lambda: clock.seconds)
    monkeypatch.setattr(planner_module, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    monkeypatch.setattr(db, "datetime", clock)
    return clock


@pytest.mark.timeout(600)
def test_any_life_is_as_the_design_says(database: Database, settings: Settings, clock: Clock) -> None:
    writing.forget_the_disk(database)
    machine = type("LifeHere", (Life,), {"database": database, "settings": settings, "clock": clock})
    live(machine, lives=45 if database.is_sqlite else 15, steps=50)


def _spec(num_devices: int) -> NewJob:
    return NewJob(name="n", preset="demo", train={}, num_devices=num_devices, device_type="cpu")
