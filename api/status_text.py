"""Why a job is where it is, in one plain sentence, with what to do next where something is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from store import models
from store.db import now
from store.states import AttemptStatus, ExitReason, Intent, JobStatus

_PHASES: Final[Mapping[str, str]] = {
    "load": "loading model and data on",
    "train": "training on",
    "evaluate": "evaluating on",
    "save": "saving on",
    "end": "finishing on",
}

_STOPPING: Final[Mapping[Intent, str]] = {
    Intent.CANCEL: "cancelling; its processes are being stopped",
    Intent.PAUSE: "pausing; a checkpoint is being saved",
    Intent.PREEMPT: "making room for another job; a checkpoint is being saved, and it goes on later",
}

_NEXT: Final[Mapping[ExitReason, str]] = {
    ExitReason.USER_ERROR: "look at the log, correct the spec or the data and submit it again",
    ExitReason.OUT_OF_MEMORY: "lower per_device_train_batch_size or max_seq_length, or set gradient_checkpointing, and submit it again",
    ExitReason.DIVERGED: "the loss became NaN or infinite: lower learning_rate, or take bf16 in place of fp16, and submit it again",
    ExitReason.STORAGE: "make room on the host's disk and submit it again",
    ExitReason.DEVICE_ERROR: "have the device looked at and submit it again",
    ExitReason.HUNG: "look at that rank's stack among the artifacts, which says where it waits, and submit it again",
    ExitReason.LEASE_EXPIRED: "look whether the host is up and submit it again",
    ExitReason.LAUNCH_ERROR: "look at the worker's log on that host and submit it again",
    ExitReason.TIME_LIMIT: "retry it, and it goes on for as long again from its last checkpoint, or submit it with a greater time_limit_s",
}
_NEXT_UNSTARTED: Final = "correct the spec or the data and submit it again"
_NEXT_OTHERWISE: Final = "look at the log and submit it again"


def of_job(job: models.Job, attempt: models.Attempt | None, *, waits_for: str) -> str | None:
    """`attempt` is its newest; `waits_for` comes from `of_wait`, for a queued one."""
    if job.status is JobStatus.QUEUED:
        return _of_queued(job, attempt, waits_for)
    if job.status is JobStatus.RUNNING and attempt is not None:
        return _of_running(job, attempt)
    if job.status is JobStatus.SUCCEEDED:
        return _of_succeeded(job.result or {})
    if job.status is JobStatus.FAILED and attempt is not None:
        return _of_failed(attempt)
    return job.status_reason or job.status.value


def of_unplanned(*, no_hosts: bool) -> str:
    """What a queued job waits for while no planner has looked at it."""
    return "no host is registered yet: start a worker" if no_hosts else "waiting to be placed"


def of_wait(reason: str, position: int | None) -> str:
    """What the planner said, and how many it looks at before: its sentences do not change when only that does."""
    if position is None or position < 2:
        return reason
    return f"{reason}; {position - 1:,} job{'s' if position > 2 else ''} ahead"


def places(host: str, devices: Sequence[int]) -> str:
    """`npu-07, cards 0–3`."""
    runs: list[list[int]] = []
    for index in sorted(devices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    named = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{host}, card{'s' if len(devices) != 1 else ''} {named}"


def _of_queued(job: models.Job, attempt: models.Attempt | None, waits_for: str) -> str:
    if attempt is None or attempt.finished_at is None or job.retry_delay_s <= 0:
        return f"waiting: {waits_for}" if job.wait_reason else waits_for
    left_s = (attempt.finished_at + timedelta(seconds=job.retry_delay_s) - now()).total_seconds()
    what = attempt.message or (attempt.exit_reason.value.replace("_", " ") if attempt.exit_reason else "it ended")
    when = f"in {left_s:.0f} s" if left_s >= 1 else "as soon as there is room"
    return f"retrying {when}; attempt {attempt.number} failed: {_clause(what)}"


def _of_running(job: models.Job, attempt: models.Attempt) -> str:
    if job.intent in _STOPPING:
        return _STOPPING[job.intent]
    where = places(attempt.host, attempt.devices) + (" (simulated)" if attempt.simulated else "")
    if attempt.status is AttemptStatus.STARTING:
        return f"starting on {where}"
    return f"{_PHASES.get(job.phase or '', 'running on')} {where}"


def _of_succeeded(result: Mapping[str, Any]) -> str:
    before, after = result.get("initial_perplexity"), result.get("perplexity")
    if not isinstance(after, int | float):
        return "finished"
    return f"finished: perplexity {_figure(after)}" + (
        f", from {_figure(before)}" if isinstance(before, int | float) else ""
    )


def _figure(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1e9 else f"{value:.3g}"


def _of_failed(attempt: models.Attempt) -> str:
    """The worker's verdict is a sentence already; it names the rank."""
    reason = attempt.exit_reason.value.replace("_", " ") if attempt.exit_reason else "no reason is known"
    what = _clause(attempt.message) if attempt.message else f"failed: {reason}"
    step = _NEXT.get(attempt.exit_reason, _NEXT_OTHERWISE) if attempt.exit_reason else _NEXT_OTHERWISE
    if attempt.exit_reason is ExitReason.USER_ERROR and attempt.failing_rank is None:
        # Refused before its launch: there is no log.
        step = _NEXT_UNSTARTED
    return f"{what}; {step}"


def _clause(message: str) -> str:
    """One line of a message, without its full stop."""
    line = " ".join(message.split())
    return (line if len(line) <= 300 else line[:299] + "…").rstrip(".")
