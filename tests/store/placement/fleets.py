"""Queues and hosts to plan for, and what must hold of any plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from store.placement import topology
from store.placement.types import ANY, HostCapacity, Plan, QueuedJob, RunningJob, Share

KINDS = ("npu", "cuda", "cpu")
OWNERS = ("ada", "bob", "eve")


def host(
    name: str, *, free: Sequence[int] = range(8), kind: str = "npu", size: int = 8, out: Sequence[int] = ()
) -> HostCapacity:
    """`out` of service are the devices that nobody gets."""
    usable = tuple(index for index in range(size) if index not in out)
    free = tuple(index for index in free if index in usable)
    return HostCapacity(name, frozenset([kind]), free, size, usable, 4 if kind == "npu" and size == 8 else 0)


def npus(number: int, *, name: str = "npu") -> list[HostCapacity]:
    return [host(f"{name}-{index:02}") for index in range(number)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[QueuedJob], list[HostCapacity], list[RunningJob], dict[str, Share]]:
    hosts: list[HostCapacity] = []
    running: list[RunningJob] = []
    for number in range(draw(st.integers(0, 4))):
        kind, size = draw(st.sampled_from(KINDS)), draw(st.sampled_from([2, 4, 8, 8, 8, 12]))
        state = draw(st.lists(st.sampled_from(["free", "free", "held", "held", "out"]), min_size=size, max_size=size))
        held = [index for index, one in enumerate(state) if one == "held"]
        while held:
            cut = draw(st.integers(1, len(held)))
            taken, held = held[:cut], held[cut:]
            left_s = draw(st.none() | st.integers(0, 5000))
            owner, priority = draw(st.sampled_from(OWNERS)), draw(st.sampled_from([-10, 0, 10]))
            running.append(
                RunningJob(
                    f"r{len(running)}",
                    f"h{number}",
                    tuple(taken),
                    owner,
                    priority,
                    left_s,
                    1.0 * len(running),
                    is_stopping=draw(st.sampled_from([False, False, False, True])),
                )
            )
        free = [index for index, one in enumerate(state) if one == "free"]
        out = [index for index, one in enumerate(state) if one == "out"]
        one = host(f"h{number}", free=free, kind=kind, size=size, out=out)
        is_drained = draw(st.sampled_from([False, False, False, True]))
        hosts.append(replace(one, free=(), usable=(), is_drained=True) if is_drained else one)
    jobs = [
        QueuedJob(
            id=f"q{number:02}",
            num_devices=draw(st.sampled_from([1, 1, 2, 3, 4, 5, 8])),
            device_type=draw(st.sampled_from([*KINDS, ANY])),
            owner=draw(st.sampled_from(OWNERS)),
            priority=draw(st.sampled_from([-10, 0, 0, 0, 10, 100])),
            waited_s=draw(st.sampled_from([0.0, 0.0, 60.0, 4000.0])),
            at_most_s=draw(st.none() | st.integers(1, 5000)),
            expected_s=draw(st.none() | st.integers(1, 5000)),
        )
        for number in range(draw(st.integers(0, 14)))
    ]
    owners = {
        name: Share(
            draw(st.sampled_from([1.0, 2.5])), draw(st.none() | st.integers(0, 12)), draw(st.integers(0, 10**5))
        )
        for name in draw(st.sets(st.sampled_from(OWNERS)))
    }
    return jobs, hosts, running, owners


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[QueuedJob], list[HostCapacity], list[RunningJob]]:
    """Full hosts of jobs of all classes, and high jobs that want in."""
    hosts: list[HostCapacity] = []
    running: list[RunningJob] = []
    for number in range(draw(st.integers(1, 3))):
        left, free = list(range(8)), draw(st.integers(0, 2))
        hosts.append(host(f"h{number}", free=[left.pop() for _ in range(free)]))
        while left:
            taken = [left.pop(0) for _ in range(min(len(left), draw(st.sampled_from([1, 2, 2, 4]))))]
            priority, is_stopping = (
                draw(st.sampled_from([-10, -10, 0, 100])),
                draw(st.sampled_from([False] * 4 + [True])),
            )
            held_s, left_s = draw(st.integers(0, 900)), draw(st.sampled_from([None, 25, 5000]))
            name = f"r{len(running)}"
            one = RunningJob(name, f"h{number}", tuple(taken), "bob", priority, left_s, held_s, is_stopping)
            running.append(one)
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=5))
    jobs = [
        QueuedJob(
            f"q{number}", size, draw(st.sampled_from(["npu", ANY])), priority=draw(st.sampled_from([99, 100, 100]))
        )
        for number, size in enumerate(sizes)
    ]
    return jobs, hosts, running


def apply(
    plan: Plan, jobs: Sequence[QueuedJob], hosts: Sequence[HostCapacity]
) -> tuple[list[QueuedJob], list[HostCapacity]]:
    """The queue and the hosts after the plan: what waits knows what it was promised."""
    promised = {wait.job_id: wait.reservation for wait in plan.waits}
    taken: dict[str, set[int]] = {}
    for one in plan.placements:
        taken.setdefault(one.host, set()).update(one.device_indices)
    queue = [replace(job, reservation=promised[job.id]) for job in jobs if job.id in promised]
    return queue, [replace(one, free=tuple(set(one.free) - taken.get(one.name, set()))) for one in hosts]


def assert_sound(
    plan: Plan,
    jobs: Sequence[QueuedJob],
    hosts: Sequence[HostCapacity],
    running: Sequence[RunningJob] = (),
    owners: Mapping[str, Share] | None = None,
) -> None:
    """Every job once; whole gangs on one host's free devices of the right type and linked group; nobody over their limit."""
    by_id, by_name = {job.id: job for job in jobs}, {one.name: one for one in hosts}
    assert sorted([one.job_id for one in plan.placements] + [one.job_id for one in plan.waits]) == sorted(by_id)
    assert [wait.position for wait in plan.waits] == list(range(1, len(plan.waits) + 1))
    taken = [(one.host, index) for one in plan.placements for index in one.device_indices]
    assert len(taken) == len(set(taken)), "two jobs on a device"
    for one in plan.placements:
        job, place = by_id[one.job_id], by_name[one.host]
        assert len(one.device_indices) == job.num_devices
        assert set(one.device_indices) <= set(place.free)
        assert job.device_type in place.serves | {ANY}
        if job.num_devices <= place.group:
            assert len({index // place.group for index in one.device_indices}) == 1, "over two linked groups"
    holds = dict.fromkeys(owners or {}, 0)
    started = [(job.owner, job.num_devices) for job in jobs if job.id in {one.job_id for one in plan.placements}]
    for owner, count in [(one.owner, len(one.device_indices)) for one in running] + started:
        holds[owner] = holds.get(owner, 0) + count
    for owner in {owner for owner, _ in started}:
        limit = (owners or {}).get(owner, Share()).max_devices
        assert limit is None or holds[owner] <= limit, f"{owner} holds more than allowed"
    assert_fair_stops(plan, jobs, hosts, running)
    for wait in plan.waits:
        if wait.reservation is not None:
            assert len(wait.reservation.device_indices) == by_id[wait.job_id].num_devices
            assert set(wait.reservation.device_indices) <= set(by_name[wait.reservation.host].usable)


def assert_fair_stops(
    plan: Plan, jobs: Sequence[QueuedJob], hosts: Sequence[HostCapacity], running: Sequence[RunningJob]
) -> None:
    """Only low jobs are stopped, once, for a high one that waits; on one host, where what they hold and what is free is enough for it."""
    by_id, by_name = {job.id: job for job in jobs}, {one.name: one for one in hosts}
    runs = {one.id: one for one in running}
    assert len({one.job_id for one in plan.preemptions}) == len(plan.preemptions)
    for for_id in {one.for_job_id for one in plan.preemptions}:
        job = by_id[for_id]
        victims = [runs[one.job_id] for one in plan.preemptions if one.for_job_id == for_id]
        assert for_id in {wait.job_id for wait in plan.waits}
        assert job.priority >= 100
        assert all(one.priority < 0 and not one.is_stopping for one in victims)
        (name,) = {one.host for one in victims}
        assert job.device_type in by_name[name].serves | {ANY}
        assert not by_name[name].is_drained
        (wait,) = [one for one in plan.waits if one.job_id == for_id]
        assert wait.reservation is not None
        wanted = set(wait.reservation.device_indices)
        assert wait.reservation.host == name
        assert all(wanted & set(one.device_indices) for one in victims), "one was stopped for nothing"


def could_start(job: QueuedJob, plan: Plan, jobs: Sequence[QueuedJob], hosts: Sequence[HostCapacity]) -> list[str]:
    """The hosts where the job, which waits, would fit on devices that are free after the plan and kept for nobody else."""
    _, left = apply(plan, jobs, hosts)
    found: list[str] = []
    for place in left:
        free = topology.mask_of(place.free)
        for wait in plan.waits:
            if wait.reservation is None or wait.reservation.host != place.name or wait.job_id == job.id:
                continue
            is_over = wait.starts_in_s is not None and job.at_most_s is not None and job.at_most_s <= wait.starts_in_s
            if not is_over:
                free &= ~topology.mask_of(wait.reservation.device_indices)
        if job.device_type in place.serves | {ANY} and topology.fit(free, job.num_devices, place.group):
            found.append(place.name)
    return found
