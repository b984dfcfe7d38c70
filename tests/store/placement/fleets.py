"""Queues and hosts to plan for, and what must hold of any plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from store.placement import ANY, HostCapacity, Plan, QueuedJob, RunningJob, Share, topology

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
                RunningJob(f"r{len(running)}", f"h{number}", tuple(taken), owner, priority, left_s, 1.0 * len(running))
            )
        free = [index for index, one in enumerate(state) if one == "free"]
        out = [index for index, one in enumerate(state) if one == "out"]
        hosts.append(host(f"h{number}", free=free, kind=kind, size=size, out=out))
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
