"""Owns what is read out of a replay: use of the devices, waits, fairness, the cost of passes, and whether what was told came true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from benchmarks.simulate.simulator import Outcome, Told
from benchmarks.simulate.traces import TraceJob

SHORT_S: Final = 600.0
"""A shorter job counts as this long in a slowdown: else a wait of a minute before a run of a second would outweigh all others."""
SLACK_S: Final = 60.0
"""Estimates are held against waits of at least a minute: of seconds, no factor is meant."""


@dataclass(frozen=True)
class Waits:
    num_jobs: int
    median_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True)
class Estimates:
    """Of the first time that each job was told when it starts. `share_told`: of those that waited for more than one pass. `within_2x`: the
    wait was between half and twice what was told; `kept_within_2x`: of those for which devices were kept by then. `late`: of the
    promised jobs, those that started more than a minute and a tenth of the wait later than they were told first."""

    num_told: int
    share_told: float
    median_error_s: float
    within_2x: float
    kept_within_2x: float
    num_promised: int
    late: float
    median_late_s: float


@dataclass(frozen=True)
class Figures:
    """`utilisation`: device time in use from the first to the last submission. `slowdown`: (wait + run) / run, of an owner the mean; of
    the jobs of owners who asked for no more than an equal share of the devices (`modest`), and of the others' (`greedy`), None where
    there are none. `pass_long_s`: the slowest of the passes at nine tenths of the longest queue or more. Passes are CPU time."""

    utilisation: float
    span_s: float
    waits: Waits
    by_size: dict[int, Waits]
    by_owner: dict[str, Waits]
    jain_slowdown: float
    worst_owner_slowdown: float
    mean_slowdown: float
    modest_slowdown: float | None
    greedy_slowdown: float | None
    pass_median_s: float
    pass_p99_s: float
    pass_max_s: float
    pass_long_s: float
    num_passes: int
    longest_queue: int
    num_stopped: int
    estimates: Estimates | None


def read_out(trace: Sequence[TraceJob], outcome: Outcome, *, num_devices: int) -> Figures:
    """Of a replay in which every job of the trace ended."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    for run in outcome.runs:
        starts[run.job_id] = min(starts.get(run.job_id, np.inf), run.start_s)
        ends[run.job_id] = max(ends.get(run.job_id, 0.0), run.end_s)
    wait_s = {job.id: starts[job.id] - job.submitted_s for job in trace}
    slowdown = {job.id: _slowdown(job, ends[job.id]) for job in trace}
    owners = sorted({job.owner for job in trace})
    by_owner = [float(np.mean([slowdown[job.id] for job in trace if job.owner == owner])) for owner in owners]
    modest = _modest(trace, num_devices)
    passes_s = np.array([took_s for took_s, _ in outcome.passes_s] or [0.0])
    longest = max((length for _, length in outcome.passes_s), default=0)
    return Figures(
        utilisation=_utilisation(trace, outcome, num_devices),
        span_s=max(ends.values()),
        waits=_waits(wait_s.values()),
        by_size={
            size: _waits(wait_s[job.id] for job in trace if job.devices == size)
            for size in sorted({j.devices for j in trace})
        },
        by_owner={owner: _waits(wait_s[job.id] for job in trace if job.owner == owner) for owner in owners},
        jain_slowdown=jain(by_owner),
        worst_owner_slowdown=max(by_owner),
        mean_slowdown=float(np.mean(list(slowdown.values()))),
        modest_slowdown=_mean(slowdown[job.id] for job in trace if job.owner in modest),
        greedy_slowdown=_mean(slowdown[job.id] for job in trace if job.owner not in modest),
        pass_median_s=float(np.median(passes_s)),
        pass_p99_s=float(np.percentile(passes_s, 99)),
        pass_max_s=float(passes_s.max()),
        pass_long_s=max((took_s for took_s, length in outcome.passes_s if length >= 0.9 * longest), default=0.0),
        num_passes=len(outcome.passes_s),
        longest_queue=longest,
        num_stopped=outcome.num_stopped,
        estimates=_estimates(outcome, starts),
    )


def jain(values: Sequence[float]) -> float:
    """1 where all are equal, 1/n where one has everything (Jain, Chiu and Hawe, 1984)."""
    array = np.asarray(values, dtype=float)
    return float(array.sum() ** 2 / (len(array) * (array**2).sum()))


def check(trace: Sequence[TraceJob], outcome: Outcome) -> list[str]:
    """What is wrong with a replay, in sentences: jobs that did not end once, devices held twice. Nothing for a sound one."""
    found: list[str] = []
    ended = [run.job_id for run in outcome.runs if run.is_last]
    if sorted(ended) != sorted(job.id for job in trace):
        found.append(f"{len(trace)} jobs were submitted and {len(ended)} ended")
    by_device: dict[tuple[str, int], list[tuple[float, float, str]]] = {}
    by_id = {job.id: job for job in trace}
    for run in outcome.runs:
        if len(run.device_indices) != by_id[run.job_id].devices:
            found.append(f"{run.job_id} ran on {len(run.device_indices)} devices")
        if run.start_s < by_id[run.job_id].submitted_s:
            found.append(f"{run.job_id} ran before it was submitted")
        for index in run.device_indices:
            by_device.setdefault((run.host, index), []).append((run.start_s, run.end_s, run.job_id))
    for device, runs in by_device.items():
        runs.sort()
        for (_, end_s, one), (start_s, _, other) in pairwise(runs):
            if start_s < end_s - 1e-6:
                found.append(f"{one} and {other} held {device} at once")
    return found


def as_json(figures: Figures) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(figures).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Waits | Estimates):
        return {name: _plain(one) for name, one in vars(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _slowdown(job: TraceJob, ended_s: float) -> float:
    runs_s = min(job.duration_s, job.limit_s or np.inf)
    return max(1.0, (ended_s - job.submitted_s) / max(runs_s, SHORT_S))


def _modest(trace: Sequence[TraceJob], num_devices: int) -> set[str]:
    """The owners who, until the last submission, asked for no more than each would have if all had the same."""
    asked: dict[str, float] = {}
    for job in trace:
        asked[job.owner] = asked.get(job.owner, 0.0) + job.devices * min(job.duration_s, job.limit_s or np.inf)
    share = num_devices * max(job.submitted_s for job in trace) / len(asked)
    return {owner for owner, device_s in asked.items() if device_s <= share}


def _mean(values: Iterable[float]) -> float | None:
    array = np.array(list(values))
    return float(array.mean()) if len(array) else None


def _waits(values: Iterable[float]) -> Waits:
    array = np.array(list(values))
    return Waits(len(array), float(np.median(array)), float(np.percentile(array, 95)), float(array.max()))


def _utilisation(trace: Sequence[TraceJob], outcome: Outcome, num_devices: int) -> float:
    until_s = max(job.submitted_s for job in trace)
    if until_s <= 0:
        return 0.0
    used = sum(max(0.0, min(run.end_s, until_s) - run.start_s) * len(run.device_indices) for run in outcome.runs)
    return used / (until_s * num_devices)


def _estimates(outcome: Outcome, starts: dict[str, float]) -> Estimates | None:
    if not outcome.told:
        return None
    errors = np.array([abs(told.start_s - starts[job_id]) for job_id, told in outcome.told.items()])
    is_near = np.array([0.5 <= _ratio(told, starts[job_id]) <= 2 for job_id, told in outcome.told.items()])
    is_kept = np.array([told.is_promise for told in outcome.told.values()])
    late = np.array([starts[job_id] - told.start_s for job_id, told in outcome.promised.items()] or [0.0])
    slack = np.array([SLACK_S + (told.start_s - told.at_s) / 10 for told in outcome.promised.values()] or [0.0])
    return Estimates(
        num_told=len(outcome.told),
        share_told=len(outcome.told) / len(outcome.waited),
        median_error_s=float(np.median(errors)),
        within_2x=float(np.mean(is_near)),
        kept_within_2x=float(np.mean(is_near[is_kept])) if is_kept.any() else 1.0,
        num_promised=len(outcome.promised),
        late=float(np.mean(late > slack)),
        median_late_s=float(np.median(late)),
    )


def _ratio(told: Told, started_s: float) -> float:
    return max(told.start_s - told.at_s, SLACK_S) / max(started_s - told.at_s, SLACK_S)
