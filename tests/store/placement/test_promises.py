"""What a blocked job was told holds: played through time, with exact estimates, under a stream of jobs that never ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from store.placement.planner import plan
from store.placement.types import HostCapacity, Plan, QueuedJob, Reservation, RunningJob, Share
from tests.store.placement import fleets
from tests.store.placement.fleets import host, npus

Arrival = tuple[float, QueuedJob, float]
"""When, which job, and how long it runs."""


class Plane:
    """Hosts in time: arrivals, passes and endings, nothing else. Every pass is held against what must hold of any plan."""

    def __init__(self, hosts: Sequence[HostCapacity], *, knows_lengths: bool = True) -> None:
        self.hosts = {one.name: one for one in hosts}
        self.knows_lengths = knows_lengths
        self.now = 0.0
        self.queue: dict[str, tuple[float, QueuedJob, float]] = {}
        self.running: dict[str, tuple[float, RunningJob]] = {}
        self.started: dict[str, float] = {}
        self.promised: dict[str, tuple[float, Reservation]] = {}

    def play(
        self, arrivals: Iterable[Arrival], *, until: str | None = None, owners: dict[str, Share] | None = None
    ) -> None:
        coming = iter(arrivals)
        following = next(coming, None)
        while following or self.running or self.queue:
            ends = min((end for end, _ in self.running.values()), default=inf)
            arrives = following[0] if following else inf
            assert min(ends, arrives) < inf, f"{sorted(self.queue)} wait for ever"
            self.now = min(ends, arrives)
            for job_id in [job_id for job_id, (end, _) in self.running.items() if end <= self.now]:
                self.end(job_id)
            while following and following[0] <= self.now:
                self.queue[following[1].id] = following
                following = next(coming, None)
            self.pass_once(owners or {})
            if until in self.started:
                return

    def pass_once(self, owners: dict[str, Share]) -> Plan:
        jobs = [replace(job, waited_s=self.now - at) for at, job, _ in self.queue.values()]
        running = [
            replace(job, left_s=end - self.now if self.knows_lengths else None) for end, job in self.running.values()
        ]
        done = plan(jobs, self.hosts.values(), running=running, owners=owners)
        fleets.assert_sound(done, jobs, list(self.hosts.values()), running, owners)
        for one in done.placements:
            _, job, lasts_s = self.queue.pop(one.job_id)
            place = self.hosts[one.host]
            self.hosts[one.host] = replace(place, free=tuple(sorted(set(place.free) - set(one.device_indices))))
            self.running[job.id] = (self.now + lasts_s, RunningJob(job.id, one.host, one.device_indices, job.owner))
            self.started[job.id] = self.now
        for wait in done.waits:
            at, job, lasts_s = self.queue[wait.job_id]
            if wait.reservation is not None and wait.job_id not in self.promised and wait.starts_in_s is not None:
                self.promised[wait.job_id] = (self.now + wait.starts_in_s, wait.reservation)
            self.queue[wait.job_id] = (at, replace(job, reservation=wait.reservation), lasts_s)
        return done

    def end(self, job_id: str) -> None:
        _, job = self.running.pop(job_id)
        place = self.hosts[job.host]
        self.hosts[job.host] = replace(place, free=tuple(sorted({*place.free, *job.device_indices})))


@st.composite
def streams(draw: st.DrawFn) -> list[Arrival]:
    arrivals: list[Arrival] = []
    at = 0.0
    for number in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0, 0, 1, 7, 40]))
        lasts_s = draw(st.integers(1, 300))
        size = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 8, 8]))
        limit_s = draw(st.sampled_from([None, lasts_s]))
        owner = draw(st.sampled_from(["ada", "bob", "eve"]))
        job = QueuedJob(f"q{number:02}", size, "npu", owner, at_most_s=limit_s, expected_s=lasts_s)
        arrivals.append((at, job, lasts_s))
    return arrivals


@settings(max_examples=100, deadline=None)
@given(streams(), st.integers(1, 3))
def test_no_job_starts_later_than_it_was_promised(arrivals: list[Arrival], num_hosts: int) -> None:
    plane = Plane(npus(num_hosts))
    plane.play(arrivals)
    assert set(plane.started) == {job.id for _, job, _ in arrivals}
    late = {
        job_id: plane.started[job_id] - by
        for job_id, (by, _) in plane.promised.items()
        if plane.started[job_id] > by + 1e-6
    }
    assert late == {}


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(1, 2), st.integers(8, 12))
def test_promises_hold_with_limits_on_owners(arrivals: list[Arrival], num_hosts: int, limit: int) -> None:
    plane = Plane(npus(num_hosts))
    plane.play(arrivals, owners={"ada": Share(max_devices=limit), "bob": Share(max_devices=8)})
    assert {job_id: by for job_id, (by, _) in plane.promised.items() if plane.started[job_id] > by + 1e-6} == {}


def test_a_whole_host_comes_free_under_an_endless_stream_of_small_jobs() -> None:
    """From owners that have had nothing, which fair share would always prefer; lengths known or not."""
    first = [*first_fill(), (1.0, big(), 50.0)]
    for knows_lengths in (True, False):
        plane = Plane(npus(1), knows_lengths=knows_lengths)
        plane.play(itertools.chain(first, small_ones(from_s=2.0, knows_lengths=knows_lengths)), until="big")
        assert plane.started["big"] == 108.0, "when the last of those that ran already has ended"


def test_short_jobs_with_a_limit_fill_the_gap_and_delay_nothing() -> None:
    plane = Plane(npus(1))
    first = [*first_fill(), (1.0, big(), 50.0)]
    plane.play(itertools.chain(first, small_ones(from_s=2.0, limit_s=1.0)), until="big")
    assert plane.started["big"] == 108.0
    filled = [job_id for job_id, at in plane.started.items() if job_id.startswith("small") and 101 <= at < 108]
    assert len(filled) > 8


def test_a_promise_moves_to_where_it_comes_true_sooner_and_stays_otherwise() -> None:
    promise = Reservation(0, 7, "npu-00", tuple(range(8)))
    queue = [replace(big(), reservation=promise)]
    hosts = [host("npu-00", free=[]), host("npu-01", free=[])]

    def promised(left_s: float | None, other_s: float | None) -> Reservation | None:
        running = [
            RunningJob("a", "npu-00", tuple(range(8)), left_s=left_s),
            RunningJob("b", "npu-01", tuple(range(8)), left_s=other_s),
        ]
        return plan(queue, hosts, running=running).waits[0].reservation

    assert promised(1000, 950) == promise
    assert promised(None, None) == promise
    assert promised(1000, 100) == Reservation(0, 8, "npu-01", tuple(range(8)))
    assert promised(None, 5000) == Reservation(0, 8, "npu-01", tuple(range(8)))


def test_a_promise_that_cannot_be_kept_is_made_anew() -> None:
    queue = [replace(big(), reservation=Reservation(0, 7, "npu-00", tuple(range(8))))]
    running = [RunningJob("b", "npu-01", tuple(range(8)), left_s=100)]
    for gone in ([], [host("npu-00", out=[2])], [host("npu-00", kind="cpu")]):
        (wait,) = plan(queue, [*gone, host("npu-01", free=[])], running=running).waits
        assert wait.reservation is not None
        assert (wait.reservation.host, wait.starts_in_s) == ("npu-01", 100)


def test_few_jobs_are_promised_devices_so_that_the_others_may_pass() -> None:
    queue = [replace(big(), id=f"big-{number:02}", waited_s=100.0 - number) for number in range(40)]
    for num_hosts, most in ((1, 1), (7, 1), (8, 2), (64, 9)):
        hosts = [replace(one, free=()) for one in npus(num_hosts)]
        done = plan(queue, hosts)
        assert sum(wait.reservation is not None for wait in done.waits) == most


def test_what_rises_from_a_lower_level_comes_after_what_was_promised_there() -> None:
    """It took devices that nothing of the upper level was told of."""
    hosts = [host("npu-00", free=range(4)), host("npu-01", free=[])]
    running = [
        RunningJob("a", "npu-00", (4, 5, 6, 7), left_s=100),
        RunningJob("b", "npu-01", tuple(range(8)), left_s=400),
    ]
    low = replace(
        big(), id="low", priority=-1, waited_s=400.0, reservation=Reservation(-1, 1, "npu-00", tuple(range(8)))
    )
    top = replace(big(), id="top", waited_s=300.0, reservation=Reservation(0, 2, "npu-00", tuple(range(8))))
    first, second = plan([low, top], hosts, running=running).waits
    assert (first.job_id, first.starts_in_s, first.reservation) == ("top", 100, top.reservation)
    assert (second.job_id, second.starts_in_s) == ("low", 150)
    assert second.reservation == Reservation(0, 3, "npu-00", tuple(range(8)))


def big() -> QueuedJob:
    return QueuedJob("big", 8, "npu", "ada", expected_s=50.0)


def first_fill() -> Iterator[Arrival]:
    """Eight jobs that end one after another, from 101 s to 108 s."""
    for number in range(8):
        yield 0.0, QueuedJob(f"first-{number}", 1, "npu", "ada", expected_s=101.0 + number), 101.0 + number


def small_ones(*, from_s: float, limit_s: float | None = None, knows_lengths: bool = True) -> Iterator[Arrival]:
    for number in itertools.count():
        lasts_s = limit_s or 60.0
        expected_s = lasts_s if knows_lengths else None
        job = QueuedJob(f"small-{number}", 1, "npu", f"owner-{number}", at_most_s=limit_s, expected_s=expected_s)
        yield from_s + number * 1.0, job, lasts_s
