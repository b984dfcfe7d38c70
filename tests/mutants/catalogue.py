"""The mutants: small faults in the code that keeps jobs alive, each an exact replacement, with the tests that must notice it."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Mutant, one

HTTP: Final = "tests/api/test_state_machine.py"
LEDGER: Final = "tests/worker/test_ledger.py"
COMMIT: Final = 'session.flush()\n    for words in ("COMMIT", "BEGIN IMMEDIATE"):\n        session.connection().exec_driver_sql(words)'
"""Two transactions out of one: what follows is no longer taken back together with what came before."""

_FENCE: Final = Edit(
    "store/attempts.py", "if attempt is None or attempt.status not in OPEN_ATTEMPT:", "if attempt is None:"
)

MUTANTS: Final = (
    Mutant("no-fence", "a holder whose attempt was closed goes on writing", (_FENCE,)),
    Mutant(
        "reopened",
        "a stale attempt can end again, and takes its job out of a terminal status",
        (
            _FENCE,
            Edit("store/states.py", "_A.LOST: frozenset(),", "_A.LOST: _ENDED_ATTEMPT,"),
            Edit("store/states.py", "_J.SUCCEEDED: frozenset(),", "_J.SUCCEEDED: frozenset({_J.QUEUED}),"),
        ),
    ),
    one(
        "begun-twice",
        "a second supervisor may begin an attempt",
        "store/attempts.py",
        "if attempt.status is not AttemptStatus.STARTING:",
        "if attempt.status not in OPEN_ATTEMPT:",
    ),
    one("no-beat", "renewing does not count", "store/attempts.py", "attempt.beat += 1", "attempt.beat += 0"),
    one(
        "judged-by-an-old-beat",
        "an attempt that was renewed since it was judged is closed all the same",
        "store/attempts.py",
        "attempt.beat != seen_beat + 1",
        "False",
    ),
    one(
        "kept-devices",
        "a close does not release the devices",
        "store/attempts.py",
        "        hosts.free(session, attempt_id)",
        "        pass",
    ),
    one(
        "freed-too-early",
        "devices are free before anybody has looked for processes on them",
        "store/attempts.py",
        "    if devices_clean:",
        "    if True:",
    ),
    one(
        "draining-ignored",
        "a host that drains is given jobs",
        "store/attempts.py",
        "target is None or target.status is not HostStatus.ONLINE or target.drained_at is not None",
        "target is None",
    ),
    one(
        "drained-ignored",
        "a host that people have drained is given jobs",
        "store/attempts.py",
        " or target.drained_at is not None:",
        ":",
    ),
    one(
        "gang-broken",
        "a job is placed on another number of devices than it asked for",
        "store/attempts.py",
        "len(device_indices) != job.num_devices",
        "False",
    ),
    one(
        "time-forgotten",
        "the running time of earlier attempts is lost",
        "store/attempts.py",
        "job.ran_s += attempt.ran_s",
        "job.ran_s = attempt.ran_s",
    ),
    one(
        "two-on-a-device",
        "what the planner thinks free is taken, whoever holds it",
        "store/hosts.py",
        "if taken or len(devices)",
        "if len(devices)",
    ),
    one(
        "cordoned-given",
        "a device that is cordoned is given to an attempt",
        "store/hosts.py",
        "or one.cordoned_at or one.unfit_reason]",
        "or one.unfit_reason]",
    ),
    one(
        "unfit-given",
        "a card that is ill, or not clean, is given to an attempt",
        "store/hosts.py",
        "or one.cordoned_at or one.unfit_reason]",
        "or one.cordoned_at]",
    ),
    one(
        "cordon-unplanned",
        "the planner wants devices that nobody may have, and passes over others",
        "store/hosts.py",
        "one.state in IN_SERVICE and one.cordoned_at is None and",
        "one.state in IN_SERVICE and",
    ),
    one(
        "unseen-given",
        "a card is given out again before its host has looked at it",
        "store/hosts.py",
        "if device.health is not None and device.unfit_reason is None:",
        "if False:",
    ),
    one(
        "seen-too-early",
        "a look at a card that began before its last holder left counts",
        "store/devices.py",
        "device.unfit_reason == UNSEEN and device.index not in seen and",
        "False and",
    ),
    one(
        "fault-not-cordoned",
        "a device whose fault ended an attempt is given to the next",
        "store/devices.py",
        "    device.cordoned_at = now()",
        "    pass",
    ),
    one(
        "lost-for-ever",
        "a host that is heard again stays lost",
        "store/hosts.py",
        "if host.status is HostStatus.LOST:",
        "if False:",
    ),
    one(
        "wrong-tries",
        "running out of memory is tried once more than the table says",
        "store/states.py",
        "ExitReason.OUT_OF_MEMORY: 2,",
        "ExitReason.OUT_OF_MEMORY: 3,",
    ),
    one(
        "one-try-more",
        "the last try is not the last",
        "store/states.py",
        "if strikes >= tries:",
        "if strikes > tries:",
    ),
    one(
        "user-errors-retried",
        "what the user must correct is tried again",
        "store/states.py",
        "ExitReason.HUNG: 3,",
        "ExitReason.HUNG: 3,\n    ExitReason.USER_ERROR: 2,",
    ),
    one(
        "cancel-beats-finish",
        "a job that was done before its cancel came through is cancelled",
        "store/states.py",
        "if reason is ExitReason.COMPLETED:",
        "if reason is ExitReason.COMPLETED and intent is not Intent.CANCEL:",
    ),
    one(
        "preempt-strikes",
        "making room for another job is a strike",
        "store/states.py",
        "return Closing(JobStatus.QUEUED, strikes)",
        "return Closing(JobStatus.QUEUED, strikes + 1)",
    ),
    one(
        "pause-strikes",
        "a pause is a strike",
        "store/states.py",
        "return Closing(JobStatus.PAUSED, strikes)",
        "return Closing(JobStatus.PAUSED, strikes + 1)",
    ),
    one(
        "no-back-off",
        "a job that failed may start again at once",
        "store/states.py",
        "delay_s=retry_s * min(2 ** (strikes - 1), MAX_DELAY_SHARE)",
        "delay_s=0.0",
    ),
    one(
        "back-off-capped",
        "the wait stops growing after the third try",
        "store/states.py",
        "MAX_DELAY_SHARE: Final = 36",
        "MAX_DELAY_SHARE: Final = 3",
    ),
    one(
        "strikes-not-reset",
        "a new checkpoint does not forgive the strikes",
        "store/checkpoints.py",
        "        job.strikes = 0",
        "        pass",
    ),
    one(
        "strikes-reset-by-anything",
        "saving the same step again forgives the strikes",
        "store/checkpoints.py",
        "if best is None or step > best:",
        "if True:",
    ),
    one(
        "corrupt-offered",
        "a checkpoint that is known to be corrupt is resumed from",
        "store/checkpoints.py",
        ".where(Checkpoint.job_id == job_id, _IS_USABLE)\n        .order_by(Checkpoint.step.desc()",
        ".where(Checkpoint.job_id == job_id)\n        .order_by(Checkpoint.step.desc()",
    ),
    Mutant(
        "cancel-lost-on-resume",
        "resuming takes a cancel back",
        (
            Edit(
                "store/jobs.py",
                "if job.status in TERMINAL_JOB or job.intent is Intent.CANCEL:\n"
                '        raise IllegalTransition(f"the job {_standing(job)}; `retry`',
                'if job.status in TERMINAL_JOB:\n        raise IllegalTransition(f"the job {_standing(job)}; `retry`',
            ),
            Edit(
                "store/jobs.py",
                "    if job.intent is Intent.PAUSE:\n        job.intent, job.intent_at = Intent.RUN",
                "    if job.intent in (Intent.PAUSE, Intent.CANCEL):\n        job.intent, job.intent_at = Intent.RUN",
            ),
        ),
    ),
    one(
        "cancel-lost-on-pause",
        "pausing takes a cancel back",
        "store/jobs.py",
        "if job.status in TERMINAL_JOB or job.intent is Intent.CANCEL:\n"
        '        raise IllegalTransition(f"the job {_standing(job)}; there is nothing to pause")',
        "if job.status in TERMINAL_JOB:\n"
        '        raise IllegalTransition(f"the job {_standing(job)}; there is nothing to pause")',
    ),
    one(
        "preempt-beats-pause",
        "making room overwrites what the user wants",
        "store/jobs.py",
        "if job.status is JobStatus.RUNNING and job.intent is Intent.RUN:",
        "if job.status is JobStatus.RUNNING and job.intent is not Intent.CANCEL:",
    ),
    one(
        "preempt-sticks",
        "a job that made room keeps the intent, and is never placed again",
        "store/jobs.py",
        "elif status is JobStatus.QUEUED and job.intent is Intent.PREEMPT:",
        "elif False:",
    ),
    one(
        "retry-keeps-strikes",
        "a retried job has fewer tries",
        "store/jobs.py",
        "Intent.RUN, now(), 0, 0.0, 0.0",
        "Intent.RUN, now(), job.strikes, 0.0, 0.0",
    ),
    one(
        "retry-keeps-the-clock",
        "a retried job has no time left",
        "store/jobs.py",
        "Intent.RUN, now(), 0, 0.0, 0.0",
        "Intent.RUN, now(), 0, 0.0, job.ran_s",
    ),
    one("rev-stands-still", "readers' cursors miss a change", "store/jobs.py", "    job.rev += 1", "    job.rev += 0"),
    one(
        "key-ignores-the-body",
        "an Idempotency-Key answers a job that was not asked for",
        "store/jobs.py",
        "if earlier is not None and earlier.request_sha256 != one.request_sha256:",
        "if False:",
    ),
    one(
        "events-with-gaps",
        "event numbers are not dense",
        "store/events.py",
        "    job.num_events += 1",
        "    job.num_events += 2",
    ),
    one(
        "event-in-another-transaction",
        "an event stays though its change was taken back",
        "store/events.py",
        "    session.add(event)",
        f"    session.add(event)\n    {COMMIT}",
    ),
    one(
        "offset-in-another-transaction",
        "bytes stay though the offset after them was taken back",
        "store/logs.py",
        "    log.end_offset += len(data)",
        f"    {COMMIT}\n    log.end_offset += len(data)",
    ),
    one(
        "bytes-twice",
        "a writer that did not hear of its commit writes the bytes again",
        "store/logs.py",
        'offset: int, data: bytes) -> None:\n    """In a transaction that `attempts.renew` opened. '
        '`offset` is the committed end: anything else is a bug, and a ValueError."""\n'
        "    log = _log(session, attempt_id, rank)\n    if offset != log.end_offset:",
        "offset: int, data: bytes) -> None:\n    log = _log(session, attempt_id, rank)\n    offset = log.end_offset\n    if False:",
    ),
    one(
        "offset-goes-back",
        "how far the metrics were read is forgotten",
        "store/attempts.py",
        "    attempt.metrics_offset = offset",
        "    pass",
    ),
    Mutant(
        "judged-by-the-wall-clock",
        "a lease expires because somebody set the clock",
        (
            Edit("worker/sweeper.py", "        now = processes.boottime()\n", "        now = wall().timestamp()\n"),
            Edit("worker/sweeper.py", "        return processes.boottime() -", "        return wall().timestamp() -"),
            Edit(
                "worker/sweeper.py",
                "from store.db import Database",
                "from store.db import Database\nfrom store.db import now as wall",
            ),
        ),
    ),
    one(
        "judged-without-watching",
        "a judge that was away takes its own absence for the others'",
        "worker/sweeper.py",
        "if self._looked_at is None or now - self._looked_at > self._settings.lease_s / 2:",
        "if self._looked_at is None:",
    ),
    one(
        "wait-ignored",
        "the planner does not hold a retry back",
        "worker/planner.py",
        "[one.job for one in situation.waiting if one.job.id not in held],",
        "[one.job for one in situation.waiting],",
    ),
    one(
        "wait-never-ends",
        "each pass begins the wait of a retry anew",
        "worker/planner.py",
        "self._seen = {key: self._seen.get(key, at) for key in delayed}",
        "self._seen = dict.fromkeys(delayed, at)",
    ),
    one(
        "quota-ignored",
        "an owner holds more than the quota",
        "store/placement/quota.py",
        "        return self._owners.get(job.owner, NOBODY).max_devices",
        "        return None",
    ),
    one(
        "order-not-kept",
        "positions are those of an earlier queue",
        "worker/planner.py",
        "queue.keep_order(session, planned)",
        "pass",
    ),
    one(
        "nobody-told",
        "a job that waits is not told why",
        "worker/planner.py",
        "                    told += _write(session, one)",
        "                    told.append(one.job_id)",
    ),
    one(
        "unheard-commit-repeated",
        "after a commit whose reply was lost the same lines are committed again",
        "worker/ledger.py",
        "        except BaseException:\n            self._offsets = None\n",
        "        except BaseException:\n",
        LEDGER,
    ),
)
