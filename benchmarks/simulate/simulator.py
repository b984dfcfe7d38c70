"""Owns a replay: simulated time in which jobs arrive, are planned, run, are stopped and end. Nothing in it sleeps or knows a clock."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from benchmarks.simulate.traces import TraceJob
from store.placement.types import HostCapacity, Placement, Plan, QueuedJob, Reservation, RunningJob, Share
from store.planning_queue import STOPPING_S
from store.usage import HALF_LIFE_S

LOST_S: Final = 60.0
"""What a stopped job repeats when it goes on: the steps since its checkpoint, and its start."""
SILENT_S: Final = 60.0
"""So long a job runs before it can tell what is left of it."""


class Stuck(RuntimeError):
    """Jobs are left that nothing will ever start."""


Planner = Callable[..., Plan]


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch in which a job held devices; the last of a job ends it."""

    job_id: str
    host: str
    device_indices: tuple[int, ...]
    start_s: float
    end_s: float
    is_last: bool


@dataclass(frozen=True, slots=True)
class Told:
    """The first estimate that a job got: at `at_s`, to start at `start_s`. `is_promise`: devices were kept for it."""

    at_s: float
    start_s: float
    is_promise: bool


@dataclass
class Outcome:
    """`passes_s`: CPU time of each planning pass, with the queue's length at it. `held`: devices in use from that moment on."""

    runs: list[Run] = field(default_factory=list[Run])
    told: dict[str, Told] = field(default_factory=dict[str, Told])
    promised: dict[str, Told] = field(default_factory=dict[str, Told])
    passes_s: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    held: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    num_stopped: int = 0
    waited: set[str] = field(default_factory=set[str])


@dataclass(slots=True)
class _Live:
    """A job that has not ended. `left_s` is what it still has to run; `run_id` tells its stretches apart."""

    job: TraceJob
    left_s: float
    ran_s: float = 0.0
    reservation: Reservation | None = None
    placement: Placement | None = None
    start_s: float = 0.0
    stops_at_s: float = inf
    run_id: int = 0


def fleet(num_hosts: int) -> list[HostCapacity]:
    """Hosts of eight linked NPUs."""
    indices = tuple(range(8))
    width = len(str(num_hosts - 1))
    return [
        HostCapacity(f"npu-{number:0{width}}", frozenset({"npu"}), indices, 8, indices, 4)
        for number in range(num_hosts)
    ]


def replay(
    trace: Sequence[TraceJob],
    hosts: Sequence[HostCapacity],
    planner: Planner,
    *,
    every_s: float,
    quotas: Mapping[str, int] | None = None,
    on_end: Callable[[], object] = lambda: None,
) -> Outcome:
    """Every job to its end. A pass is made when something has happened, at least `every_s` after the last one."""
    one = _Replay(trace, hosts, planner, quotas or {}, on_end)
    one.run(every_s)
    return one.outcome


class _Replay:
    def __init__(
        self,
        trace: Sequence[TraceJob],
        hosts: Sequence[HostCapacity],
        planner: Planner,
        quotas: Mapping[str, int],
        on_end: Callable[[], object],
    ) -> None:
        self._trace, self._planner, self._quotas, self._on_end = trace, planner, quotas, on_end
        self._hosts = {host.name: host for host in hosts}
        self._live: dict[str, _Live] = {}
        self._queue: dict[str, _Live] = {}
        self._running: dict[str, _Live] = {}
        self._ends: list[tuple[float, str, int]] = []
        self._now = self._counted_s = 0.0
        self._num_held = 0
        self._used: dict[str, float] = {}
        self._took: dict[str, tuple[float, float]] = {}
        self.outcome = Outcome()

    def run(self, every_s: float) -> None:
        arrived, plan_at = 0, 0.0
        is_due = False
        while arrived < len(self._trace) or self._live:
            arrives = self._trace[arrived].submitted_s if arrived < len(self._trace) else inf
            ends = self._ends[0][0] if self._ends else inf
            self._now = min(arrives, ends, plan_at if is_due else inf)
            if self._now == inf:
                one = next(iter(self._queue.values())).job
                such = f"such as {one.id} of {one.owner}, which wants {one.devices} devices"
                raise Stuck(f"{len(self._queue)} jobs wait for ever, {such}: is the quota lower?")
            while arrived < len(self._trace) and self._trace[arrived].submitted_s <= self._now:
                job = self._trace[arrived]
                self._live[job.id] = self._queue[job.id] = _Live(job, min(job.duration_s, job.limit_s or inf))
                arrived, is_due = arrived + 1, True
            is_due |= self._end_what_ends()
            if is_due and self._now >= plan_at:
                self._pass()
                is_due, plan_at = False, self._now + every_s

    def _end_what_ends(self) -> bool:
        has_ended = False
        while self._ends and self._ends[0][0] <= self._now:
            at_s, job_id, run_id = heapq.heappop(self._ends)
            live = self._running.get(job_id)
            if live is not None and live.run_id == run_id:
                self._end(live, at_s)
                has_ended = True
        return has_ended

    def _end(self, live: _Live, at_s: float) -> None:
        job, placement = live.job, live.placement
        assert placement is not None
        ran_s = at_s - live.start_s
        live.ran_s += ran_s
        is_last = ran_s >= live.left_s - 1e-6
        self.outcome.runs.append(
            Run(job.id, placement.host, placement.device_indices, live.start_s, at_s, is_last=is_last)
        )
        host = self._hosts[placement.host]
        self._hosts[host.name] = replace(host, free=tuple(sorted({*host.free, *placement.device_indices})))
        self._hold(-len(placement.device_indices))
        del self._running[job.id]
        live.placement, live.stops_at_s = None, inf
        if is_last:
            del self._live[job.id]
            took_s, count = self._took.get(job.owner, (0.0, 0.0))
            self._took[job.owner] = (took_s + live.ran_s, count + 1)
            self._on_end()
        else:
            live.left_s = live.left_s - ran_s + LOST_S
            self._queue[job.id] = live

    def _pass(self) -> None:
        self._count_usage()
        if not self._queue:
            return
        jobs = [self._queued(live) for live in self._queue.values()]
        running = [self._runs(live) for live in self._running.values()]
        owners = {
            owner: Share(
                max_devices=self._quotas.get(owner, self._quotas.get("*")), used_device_s=self._used.get(owner, 0.0)
            )
            for owner in {job.owner for job in jobs} | self._used.keys()
        }
        hosts = list(self._hosts.values())
        began_s = time.process_time()
        plan = self._planner(jobs, hosts, running=running, owners=owners)
        self.outcome.passes_s.append((time.process_time() - began_s, len(jobs)))
        self._carry_out(plan)

    def _carry_out(self, plan: Plan) -> None:
        for placement in plan.placements:
            self._start(self._queue.pop(placement.job_id), placement)
        for wish in plan.preemptions:
            live = self._running[wish.job_id]
            live.stops_at_s = self._now + STOPPING_S
            heapq.heappush(self._ends, (live.stops_at_s, live.job.id, live.run_id))
            self.outcome.num_stopped += 1
        self.outcome.waited.update(wait.job_id for wait in plan.waits)
        for wait in plan.waits:
            self._queue[wait.job_id].reservation = wait.reservation
            if wait.starts_in_s is None:
                continue
            told = Told(self._now, self._now + wait.starts_in_s, is_promise=wait.reservation is not None)
            self.outcome.told.setdefault(wait.job_id, told)
            if told.is_promise:
                self.outcome.promised.setdefault(wait.job_id, told)

    def _start(self, live: _Live, placement: Placement) -> None:
        host = self._hosts[placement.host]
        assert set(placement.device_indices) <= set(host.free), "a device was given out twice"
        free = tuple(index for index in host.free if index not in placement.device_indices)
        self._hosts[host.name] = replace(host, free=free)
        self._hold(len(placement.device_indices))
        live.placement, live.start_s, live.reservation = placement, self._now, None
        live.run_id += 1
        self._running[live.job.id] = live
        heapq.heappush(self._ends, (self._now + live.left_s, live.job.id, live.run_id))

    def _queued(self, live: _Live) -> QueuedJob:
        job = live.job
        return QueuedJob(
            id=job.id,
            num_devices=job.devices,
            device_type="npu",
            owner=job.owner,
            priority=job.priority,
            waited_s=self._now - job.submitted_s,
            at_most_s=None if job.limit_s is None else max(0.0, job.limit_s - live.ran_s) + STOPPING_S,
            expected_s=self._typical_s(job.owner, live.ran_s),
            reservation=live.reservation,
        )

    def _runs(self, live: _Live) -> RunningJob:
        placement, job = live.placement, live.job
        assert placement is not None
        held_s = self._now - live.start_s
        is_stopping = live.stops_at_s < inf
        return RunningJob(
            id=job.id,
            host=placement.host,
            device_indices=placement.device_indices,
            owner=job.owner,
            priority=job.priority,
            left_s=live.stops_at_s - self._now if is_stopping else self._left_s(live, held_s),
            held_s=held_s,
            is_stopping=is_stopping,
        )

    def _left_s(self, live: _Live, held_s: float) -> float | None:
        """As the plane reads it: measured, with this job's error; before that, what such jobs took; never past the time limit."""
        ran_s = live.ran_s + held_s
        guess_s = self._typical_s(live.job.owner, ran_s)
        if held_s >= SILENT_S:
            guess_s = (live.left_s - held_s) * live.job.estimate_error
        limit_s = None if live.job.limit_s is None else max(0.0, live.job.limit_s - ran_s) + STOPPING_S
        return min((one for one in (guess_s, limit_s) if one is not None), default=None)

    def _typical_s(self, owner: str, ran_s: float) -> float | None:
        took_s, count = self._took.get(owner, (0.0, 0.0))
        return took_s / count - ran_s if count and took_s / count > ran_s else None

    def _count_usage(self) -> None:
        """What each has had since the last pass, a day ago counting half."""
        passed_s = self._now - self._counted_s
        fading = 0.5 ** (passed_s / HALF_LIFE_S)
        self._used = {owner: used * fading for owner, used in self._used.items()}
        for live in self._running.values():
            had_s = min(passed_s, self._now - live.start_s) * live.job.devices
            self._used[live.job.owner] = self._used.get(live.job.owner, 0.0) + had_s
        self._counted_s = self._now

    def _hold(self, change: int) -> None:
        self._num_held += change
        self.outcome.held.append((self._now, self._num_held))
