from __future__ import annotations

import pytest

from store.states import (
    ATTEMPT_STATUS_OF,
    ATTEMPT_TRANSITIONS,
    INTENTS,
    JOB_TRANSITIONS,
    TRIES,
    AttemptStatus,
    ExitReason,
    Intent,
    JobStatus,
    close,
)


def test_every_status_and_reason_has_its_line() -> None:
    assert set(JOB_TRANSITIONS) == set(JobStatus)
    assert set(ATTEMPT_TRANSITIONS) == set(AttemptStatus)
    assert set(ATTEMPT_STATUS_OF) == set(ExitReason)
    assert set(INTENTS) == set(JobStatus)


def test_success_beats_a_cancel() -> None:
    assert close(ExitReason.COMPLETED, intent=Intent.CANCEL, strikes=0).job_status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("reason", [reason for reason in ExitReason if reason is not ExitReason.COMPLETED])
def test_any_other_end_of_a_cancelled_job_is_a_cancel(reason: ExitReason) -> None:
    assert close(reason, intent=Intent.CANCEL, strikes=3).job_status is JobStatus.CANCELLED


@pytest.mark.parametrize("reason", [reason for reason in ExitReason if reason is not ExitReason.COMPLETED])
def test_any_other_end_of_a_job_to_pause_is_a_pause(reason: ExitReason) -> None:
    assert close(reason, intent=Intent.PAUSE, strikes=3).job_status is JobStatus.PAUSED


def test_a_preempted_job_goes_back_without_a_strike() -> None:
    closing = close(ExitReason.PREEMPTED, intent=Intent.PREEMPT, strikes=4)
    assert (closing.job_status, closing.strikes, closing.delay_s) == (JobStatus.QUEUED, 4, 0.0)


@pytest.mark.parametrize("reason", [ExitReason.USER_ERROR, ExitReason.DIVERGED, ExitReason.TIME_LIMIT])
def test_what_a_retry_cannot_mend_is_not_retried(reason: ExitReason) -> None:
    assert close(reason, intent=Intent.RUN, strikes=0).job_status is JobStatus.FAILED


@pytest.mark.parametrize(("reason", "tries"), TRIES.items())
def test_a_reason_has_exactly_its_tries(reason: ExitReason, tries: int) -> None:
    strikes, ended = 0, []
    for _ in range(tries):
        closing = close(reason, intent=Intent.RUN, strikes=strikes)
        strikes = closing.strikes
        ended.append(closing.job_status)
    assert ended == [JobStatus.QUEUED] * (tries - 1) + [JobStatus.FAILED]


def test_the_delay_doubles_up_to_six_minutes() -> None:
    delays = [close(ExitReason.INFRA, intent=Intent.RUN, strikes=strikes).delay_s for strikes in range(4)]
    assert delays == [10.0, 20.0, 40.0, 80.0]
    assert close(ExitReason.INFRA, intent=Intent.RUN, strikes=1, retry_s=0.5).delay_s == 1.0
    assert max(delays) <= 360.0
