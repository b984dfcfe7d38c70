"""What holds of every plan, whatever there is to plan; and single cases that show why."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from store.placement.planner import plan
from store.placement.types import HostCapacity, QueuedJob, RunningJob, Share
from tests.store.placement import fleets
from tests.store.placement.fleets import host, npus, situations

Situation = tuple[list[QueuedJob], list[HostCapacity], list[RunningJob], dict[str, Share]]


@settings(deadline=None)
@given(situations())
def test_whole_gangs_on_free_devices_and_nobody_forgotten(situation: Situation) -> None:
    jobs, hosts, running, owners = situation
    fleets.assert_sound(plan(jobs, hosts, running=running, owners=owners), jobs, hosts, running, owners)


@settings(deadline=None)
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_does_not_matter(situation: Situation, shuffle: random.Random) -> None:
    jobs, hosts, running, owners = situation
    once = plan(jobs, hosts, running=running, owners=owners)
    shuffled = [random.Random(shuffle.random()).sample(one, len(one)) for one in (jobs, hosts, running)]
    names = random.Random(shuffle.random()).sample(sorted(owners), len(owners))
    again = plan(shuffled[0], shuffled[1], running=shuffled[2], owners={name: owners[name] for name in names})
    assert again == once


@settings(deadline=None)
@given(situations())
def test_no_job_waits_that_could_start_and_would_delay_no_promise(situation: Situation) -> None:
    jobs, hosts, running, _ = situation
    done = plan(jobs, hosts, running=running)
    waiting = {wait.job_id for wait in done.waits}
    for job in jobs:
        if job.id in waiting:
            assert fleets.could_start(job, done, jobs, hosts) == []


@settings(deadline=None)
@given(situations())
def test_lower_jobs_change_nothing_for_higher_ones(situation: Situation) -> None:
    jobs, hosts, running, owners = situation
    jobs = [replace(job, waited_s=0.0) for job in jobs]
    assume(len({job.priority for job in jobs}) > 1)
    lowest = min(job.priority for job in jobs)
    high = [job for job in jobs if job.priority > lowest]
    both, alone = (plan(one, hosts, running=running, owners=owners) for one in (jobs, high))
    ids = {job.id for job in high}
    assert [one for one in both.placements if one.job_id in ids] == list(alone.placements)
    told = [(one.job_id, one.position, one.reservation) for one in both.waits if one.job_id in ids]
    assert told == [(one.job_id, one.position, one.reservation) for one in alone.waits]
    assert [one for one in both.preemptions if one.for_job_id in ids] == list(alone.preemptions)


@settings(deadline=None)
@given(situations(), st.integers(2, 4))
def test_passes_one_after_another_are_sound_too(situation: Situation, num_passes: int) -> None:
    jobs, hosts, running, owners = situation
    for _ in range(num_passes):
        done = plan(jobs, hosts, running=running, owners=owners)
        fleets.assert_sound(done, jobs, hosts, running, owners)
        by_id = {job.id: job for job in jobs}
        running = running + [
            RunningJob(
                one.job_id, one.host, one.device_indices, by_id[one.job_id].owner, left_s=by_id[one.job_id].at_most_s
            )
            for one in done.placements
        ]
        jobs, hosts = fleets.apply(done, jobs, hosts)


@settings(deadline=None)
@given(fleets.crowded())
def test_only_low_jobs_make_room_and_none_for_nothing(
    situation: tuple[list[QueuedJob], list[HostCapacity], list[RunningJob]],
) -> None:
    jobs, hosts, running = situation
    fleets.assert_sound(plan(jobs, hosts, running=running), jobs, hosts, running)


def test_first_by_priority_then_share_then_age() -> None:
    jobs = [
        job("late", owner="ada", waited_s=1),
        job("early", owner="ada", waited_s=3),
        job("other", owner="bob", waited_s=2),
        job("urgent", owner="ada", priority=1),
    ]
    done = plan(jobs, [], owners={"ada": Share(used_device_s=0), "bob": Share(used_device_s=10.0)})
    assert [wait.job_id for wait in done.waits] == ["urgent", "other", "early", "late"], "urgent is charged to ada"
    heavy = plan(jobs, [], owners={"bob": Share(used_device_s=10 * 3600.0)})
    assert [wait.job_id for wait in heavy.waits] == ["urgent", "early", "late", "other"]


def test_a_weight_of_two_gets_two_thirds() -> None:
    jobs = [job(f"{owner}{number:02}", owner=owner) for owner in ("ada", "bob") for number in range(30)]
    done = plan(jobs, npus(3), owners={"ada": Share(weight=2.0), "bob": Share()})
    started = [one.job_id[:3] for one in done.placements]
    assert (started.count("ada"), started.count("bob")) == (16, 8)


def test_an_hour_of_waiting_is_worth_ten_points_but_never_more_than_the_highest_there_is() -> None:
    jobs = [job("old", owner="ada", priority=-10, waited_s=3601), job("new", owner="bob", num_devices=8)]
    (first, _) = plan(jobs, []).waits
    assert first.job_id == "old", "level with the other now, and older"
    (first, _) = plan([replace(jobs[0], waited_s=3599), jobs[1]], []).waits
    assert first.job_id == "new"
    (first, _) = plan([replace(jobs[0], waited_s=10**6), jobs[1]], [], owners={"ada": Share(used_device_s=1)}).waits
    assert first.job_id == "new", "age brings it level, not ahead of one whose owner has had less"


def test_small_jobs_leave_whole_hosts_and_groups_free() -> None:
    started = plan([job(f"{number}") for number in range(4)], npus(3)).placements
    assert {one.host for one in started} == {"npu-00"}
    assert sorted(index for one in started for index in one.device_indices) == [0, 1, 2, 3]
    hosts = [host("a"), host("b", free=[1, 4, 5, 6, 7]), host("c", free=[2, 3])]
    assert [(one.host, one.device_indices) for one in plan([job("1")], hosts).placements] == [("b", (1,))]
    assert [(one.host, one.device_indices) for one in plan([job("2", num_devices=2)], hosts).placements] == [
        ("c", (2, 3))
    ]
    assert [(one.host, one.device_indices) for one in plan([job("4", num_devices=4)], hosts).placements] == [
        ("b", (4, 5, 6, 7))
    ]


def test_linked_devices_or_none() -> None:
    done = plan([job("1", num_devices=4)], [host("a", free=[2, 3, 4, 5])])
    assert done.placements == []
    words = "needs 4 free npu devices on one host; a has 4 of 8 free, but not 4 that are linked"
    assert done.waits[0].reason == words
    assert plan([job("1", num_devices=4, kind="cpu")], [host("a", free=[2, 3, 4, 5], kind="cpu")]).placements


def test_any_takes_an_accelerator_first() -> None:
    done = plan([job("1", kind="any"), job("2", kind="any")], [host("a", kind="cpu"), host("b", free=[3])])
    assert [(one.job_id, one.host) for one in done.placements] == [("1", "b"), ("2", "a")]


@settings(deadline=None)
@given(situations())
def test_nobody_is_told_that_enough_is_free_and_not_why_that_is_no_use(situation: Situation) -> None:
    jobs, hosts, running, owners = situation
    needs = {job.id: job.num_devices for job in jobs}
    for wait in plan(jobs, hosts, running=running, owners=owners).waits:
        for clause in (wait.reason or "").split("; ")[1:]:
            free = re.search(r"has (\d+) of \d+ free(.*)", clause)
            assert free is None or int(free[1]) < needs[wait.job_id] or free[2], wait.reason


def test_what_is_kept_for_a_job_ahead_is_said_to_be() -> None:
    hosts, busy = [host("npu-07", free=[6, 7])], RunningJob("r", "npu-07", tuple(range(6)))
    (_, small) = plan([job("big", num_devices=8, waited_s=1), job("small")], hosts, running=[busy]).waits
    assert small.reason == "needs 1 free npu device on one host; npu-07 has 2 of 8 free, kept for jobs ahead"
    known = replace(busy, left_s=2300)
    jobs = [job("big", num_devices=8, waited_s=1, at_most_s=100), job("small")]
    (_, small) = plan(jobs, hosts, running=[known]).waits
    words = "needs 1 free npu device on one host; npu-07 has 2 of 8 free, kept for jobs ahead; npu-07 frees 1 in about 40 min"
    assert small.reason == words


def test_what_can_never_be_is_said_plainly() -> None:
    def reason(one: QueuedJob, hosts: list[HostCapacity], **given: Any) -> str:
        return plan([one], hosts, **given).waits[0].reason or ""

    assert reason(job("1"), []) == "needs 1 free npu device on one host; no host is online: start a worker"
    assert "no host that is online has npu devices" in reason(job("1"), [host("a", kind="cpu")])
    assert "the largest online, a, has 2" in reason(job("1", num_devices=4), [host("a", size=2)])
    assert "a has 7 of its 8 in service" in reason(job("1", num_devices=8), [host("a", out=[3])])
    assert "in service, but not 4 that are linked" in reason(job("1", num_devices=4), [host("a", out=[3, 4])])
    limited = {"ada": Share(max_devices=2)}
    assert reason(job("1", num_devices=4), npus(1), owners=limited) == "needs 4 devices, and ada may hold 2 at once"


def test_a_limit_on_what_an_owner_holds() -> None:
    running = [RunningJob("r", "npu-00", (0, 1), "ada", left_s=2300)]
    hosts = [host("npu-00", free=range(2, 8))]
    owners = {"ada": Share(max_devices=4)}
    jobs = [job("1", num_devices=4, waited_s=2), job("2", waited_s=1), job("3", at_most_s=2300), job("4", owner="bob")]
    done = plan(jobs, hosts, running=running, owners=owners)
    assert [one.job_id for one in done.placements] == ["4", "3"], "2 would keep 1 from its turn, 3 is over by then"
    assert [wait.reason for wait in done.waits] == [
        "ada may hold 4 devices at once and holds 3; this one needs 4; room for it in about 40 min",
        "ada may hold 4 devices at once, and those left are kept for a job of theirs ahead",
    ]


def test_a_high_job_has_the_fewest_and_youngest_low_ones_stopped() -> None:
    running = [
        RunningJob("a", "npu-00", (0, 1, 2, 3), priority=-1, held_s=500),
        RunningJob("b", "npu-00", (4, 5), priority=-1, held_s=10),
        RunningJob("c", "npu-00", (6, 7), priority=-1, held_s=20),
        RunningJob("d", "npu-01", tuple(range(8)), priority=0, held_s=1),
    ]
    hosts = [host("npu-00", free=[]), host("npu-01", free=[])]
    done = plan([job("h", num_devices=2, priority=100)], hosts, running=running)
    assert [(one.job_id, one.for_job_id) for one in done.preemptions] == [("b", "h")]
    assert (
        done.waits[0].reason
        == "needs 2 free npu devices on one host; npu-00 makes room: jobs of low priority there are saving (1)"
    )
    assert plan([job("n", num_devices=2, priority=99)], hosts, running=running).preemptions == []
    assert plan([job("h", num_devices=2, priority=100)], hosts[1:], running=running).preemptions == []
    asked = [replace(one, is_stopping=one.id == "b", left_s=25.0 if one.id == "b" else None) for one in running]
    assert plan([job("h", num_devices=2, priority=100)], hosts, running=asked).preemptions == [], "room comes already"


def test_nobody_is_stopped_for_a_job_that_starts_soon_anyway() -> None:
    running = [
        RunningJob("a", "npu-00", (0, 1), priority=-1, left_s=3000),
        RunningJob("b", "npu-00", (2, 3), left_s=50),
    ]
    done = plan([job("h", num_devices=2, priority=100)], [host("npu-00", free=[])], running=running)
    assert done.preemptions == []


def test_only_the_first_are_told() -> None:
    done = plan([job(f"{number:02}") for number in range(9)], [], tell=4)
    assert [wait.reason is not None for wait in done.waits] == [True] * 4 + [False] * 5


def job(job_id: str, *, num_devices: int = 1, kind: str = "npu", owner: str = "ada", **more: Any) -> QueuedJob:
    return QueuedJob(job_id, num_devices, kind, owner, **more)
