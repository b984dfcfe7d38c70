from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from store.placement import HostCapacity, QueuedJob, plan

CPU = frozenset({"cpu"})


def host(name: str, free: int, total: int = 8, serves: frozenset[str] = CPU) -> HostCapacity:
    return HostCapacity(name, serves, tuple(range(free)), total)


def test_first_come_first_placed_and_the_rest_are_told_why() -> None:
    result = plan([QueuedJob("1", 2, "cpu"), QueuedJob("2", 4, "cpu"), QueuedJob("3", 1, "any")], [host("a", 3)])
    assert [(one.job_id, one.host, one.device_indices) for one in result.placements] == [
        ("1", "a", (0, 1)),
        ("3", "a", (2,)),
    ]
    (wait,) = result.waits
    assert (wait.job_id, wait.position) == ("2", 1)
    assert (
        "needs 4 free cpu devices on one host; a has 0 of 8 free" in wait.reason or "a has 1 of 8 free" in wait.reason
    )


def test_no_host_is_said_plainly() -> None:
    assert "no host is online" in plan([QueuedJob("1", 1, "npu")], []).waits[0].reason
    assert "no host that is online has npu" in plan([QueuedJob("1", 1, "npu")], [host("a", 8)]).waits[0].reason
    assert "the largest online, a, has 2" in plan([QueuedJob("1", 4, "cpu")], [host("a", 2, total=2)]).waits[0].reason


QUEUES = st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["cpu", "npu", "any"])), max_size=20)
HOSTS = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["cpu", "npu"])), max_size=5)


@given(QUEUES, HOSTS)
def test_no_device_twice_no_partial_gang_nobody_forgotten(
    queue: list[tuple[int, str]], machines: list[tuple[int, str]]
) -> None:
    jobs = [QueuedJob(str(number), *spec) for number, spec in enumerate(queue)]
    hosts = [host(str(number), free, serves=frozenset({kind})) for number, (free, kind) in enumerate(machines)]
    result = plan(jobs, hosts)
    taken = [(one.host, index) for one in result.placements for index in one.device_indices]
    assert len(taken) == len(set(taken))
    assert {one.job_id: len(one.device_indices) for one in result.placements} == {
        job.id: job.num_devices for job in jobs if job.id in {one.job_id for one in result.placements}
    }
    assert sorted([one.job_id for one in result.placements] + [one.job_id for one in result.waits]) == sorted(
        job.id for job in jobs
    )
    by_id, by_name = {job.id: job for job in jobs}, {one.name: one for one in hosts}
    for one in result.placements:
        assert by_id[one.job_id].device_type in by_name[one.host].serves | {"any"}
        assert set(one.device_indices) <= set(by_name[one.host].free)
    left = {one.name: len(one.free) - sum(name == one.name for name, _ in taken) for one in hosts}
    for wait in result.waits:
        job = by_id[wait.job_id]
        assert all(left[one.name] < job.num_devices for one in hosts if job.device_type in one.serves | {"any"})
