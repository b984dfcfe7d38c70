"""The life of jobs as the design tells it, a second time and on purpose: plain Python that predicts what the store does, with none of it.

A method is a call on the store. It answers the name of the error that the call must raise, or None, and then lives on accordingly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TRIES = {
    "infra": 5, "device_error": 5, "storage": 5, "lease_expired": 5, "launch_error": 5, "hung": 3, "out_of_memory": 2,
}  # fmt: skip
ENDS = {
    "completed": "succeeded",
    "user_cancelled": "cancelled",
    "paused": "stopped",
    "preempted": "stopped",
    "lease_expired": "lost",
}
TERMINAL = frozenset(["succeeded", "failed", "cancelled"])
FIRST_DELAY_S = 10.0
UNSEEN = "was freed a moment ago, and its host has not looked at it since"


@dataclass
class Checkpoint:
    attempt_id: str
    step: int
    is_usable: bool = True


@dataclass
class Job:
    num_devices: int
    status: str = "queued"
    intent: str = "run"
    strikes: int = 0
    delay_s: float = 0.0
    ran_s: float = 0.0
    step: int | None = None
    attempts: list[str] = field(default_factory=list[str])
    timeline: list[str] = field(default_factory=lambda: ["submitted"])
    checkpoints: list[Checkpoint] = field(default_factory=list[Checkpoint])

    @property
    def best_first(self) -> list[int]:
        """The steps that a next attempt may go on from."""
        return sorted((one.step for one in self.checkpoints if one.is_usable), reverse=True)


@dataclass
class Attempt:
    job_id: str
    number: int
    host: str
    devices: frozenset[int]
    status: str = "starting"
    exit_reason: str | None = None
    beat: int = 0
    ran_s: float = 0.0
    log: bytes = b""
    points: dict[int, float] = field(default_factory=dict[int, float])
    metrics_offset: int = 0

    @property
    def is_open(self) -> bool:
        return self.exit_reason is None


@dataclass
class Host:
    status: str = "online"
    beat: int = 1
    is_drained: bool = False

    @property
    def takes_jobs(self) -> bool:
        return self.status == "online" and not self.is_drained


@dataclass
class Device:
    """`holder` is the attempt that it was given to. `health`: what its host read last; `unfit`: why it must not be given out."""

    state: str = "free"
    holder: str | None = None
    is_cordoned: bool = False
    health: str | None = None
    unfit: str | None = None

    @property
    def can_be_given(self) -> bool:
        return self.state == "free" and not self.is_cordoned and self.unfit is None


@dataclass(frozen=True)
class Look:
    """What a host saw of one of its cards: what ails it, and what of others lies on it."""

    health: str | None
    ailment: str | None = None
    residue: str | None = None


class Oracle:
    """Every job, attempt, host and device, and what each call makes of them."""

    def __init__(self, devices: Mapping[str, int]) -> None:
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[str, Attempt] = {}
        self.hosts = {name: Host() for name in devices}
        self.devices = {(name, index): Device() for name, number in devices.items() for index in range(number)}

    @property
    def unsettled(self) -> set[str]:
        """The jobs of which a process may still run, on a host that is there to look."""
        return {
            self.attempts[device.holder].job_id
            for (host, _), device in self.devices.items()
            if device.state == "unverified" and device.holder is not None and self.hosts[host].status != "lost"
        }

    def submit(self, job_id: str, *, num_devices: int) -> None:
        self.jobs[job_id] = Job(num_devices)

    def refusal_to_place(self, job_id: str, host: str, indices: Iterable[int]) -> str | None:
        job, wanted = self.jobs[job_id], list(indices)
        fits = len(wanted) == job.num_devices and all(
            (host, index) in self.devices and self.devices[host, index].can_be_given for index in wanted
        )
        return None if job.status == "queued" and self.hosts[host].takes_jobs and fits else "PlacementConflict"

    def place(self, job_id: str, attempt_id: str, host: str, indices: Iterable[int]) -> None:
        job = self.jobs[job_id]
        job.attempts.append(attempt_id)
        attempt = Attempt(job_id, len(job.attempts), host, frozenset(indices))
        self.attempts[attempt_id] = attempt
        for index in attempt.devices:
            self.devices[host, index].state, self.devices[host, index].holder = "held", attempt_id
        job.step = next(iter(job.best_first), None)
        self._becomes(job, "running")
        job.timeline.append("placed")

    def begin(self, attempt_id: str) -> str | None:
        attempt = self.attempts[attempt_id]
        if attempt.status != "starting":
            return "LeaseLost"
        attempt.status = "running"
        attempt.beat += 1
        self.jobs[attempt.job_id].timeline.append("attempt_started")
        return None

    def renew(self, attempt_id: str, *, ran_s: float | None = None) -> str | None:
        attempt = self.attempts[attempt_id]
        if not attempt.is_open:
            return "LeaseLost"
        attempt.beat += 1
        attempt.ran_s = max(attempt.ran_s, ran_s or 0.0)
        return None

    def ingest(self, attempt_id: str, data: bytes, *, step: int, value: float) -> str | None:
        if refusal := self.renew(attempt_id):
            return refusal
        attempt = self.attempts[attempt_id]
        attempt.log += data
        attempt.points[step] = value
        attempt.metrics_offset += len(data)
        self.jobs[attempt.job_id].step = step
        return None

    def publish(self, attempt_id: str, step: int) -> str | None:
        if refusal := self.renew(attempt_id):
            return refusal
        job = self.jobs[self.attempts[attempt_id].job_id]
        if all(step > best for best in job.best_first):
            job.strikes = 0
        same = [one for one in job.checkpoints if (one.attempt_id, one.step) == (attempt_id, step)]
        for one in same:
            one.is_usable = True
        if not same:
            job.checkpoints.append(Checkpoint(attempt_id, step))
        job.timeline.append("checkpoint")
        return None

    def condemn(self, attempt_id: str, checkpoint: Checkpoint) -> str | None:
        if refusal := self.renew(attempt_id):
            return refusal
        if checkpoint.is_usable:
            self.jobs[self.attempts[attempt_id].job_id].timeline.append("checkpoint_corrupt")
        checkpoint.is_usable = False
        return None

    def close(self, attempt_id: str, reason: str, *, clean: bool) -> str | None:
        attempt = self.attempts[attempt_id]
        job = self.jobs[attempt.job_id]
        if not attempt.is_open:
            return "LeaseLost"
        if reason == "completed" and attempt.status == "starting":
            return "IllegalTransition"
        attempt.beat += 1
        attempt.status, attempt.exit_reason = ENDS.get(reason, "failed"), reason
        job.ran_s += attempt.ran_s
        job.timeline.append("attempt_closed")
        self._becomes(job, self._end(job, reason))
        self._release(attempt_id, to="free" if clean else "unverified")
        return None

    def verify(self, attempt_id: str, *, stuck: bool) -> None:
        """The host has looked at the devices of a closed attempt: nobody is left there, or somebody cannot be ended."""
        self._release(attempt_id, to="quarantined" if stuck else "free")

    def look(self, host: str, found: Mapping[int, Look], *, in_time: bool) -> bool:
        """The host has looked at these cards, after it saw that they wait for it or before. Answers whether one becomes fit or unfit."""
        is_news = False
        for index, look in found.items():
            device = self.devices[host, index]
            device.health = look.health
            if device.unfit == UNSEEN and not in_time and look.health is not None:
                continue
            before, device.unfit = device.unfit, look.ailment or (look.residue if device.state == "free" else None)
            is_news |= (before is None) != (device.unfit is None)
        return is_news

    def blame(self, attempt_id: str, index: int) -> str | None:
        """A device's fault ends the attempt: it is given to nobody until a person has looked."""
        if refusal := self.renew(attempt_id):
            return refusal
        attempt = self.attempts[attempt_id]
        device = self.devices.get((attempt.host, index))
        if device is not None and not device.is_cordoned:
            device.is_cordoned = True
            self.jobs[attempt.job_id].timeline.append("device_cordoned")
        return None

    @property
    def num_held(self) -> int:
        return sum(device.state == "held" for device in self.devices.values())

    def cancel(self, job_id: str) -> str | None:
        job = self.jobs[job_id]
        if job.status in ("succeeded", "failed"):
            return "IllegalTransition"
        if job.intent != "cancel":
            job.intent = "cancel"
            job.timeline.append("cancel_requested")
            if job.status != "running":
                self._becomes(job, "cancelled")
        return None

    def pause(self, job_id: str) -> str | None:
        job = self.jobs[job_id]
        if job.status in TERMINAL or job.intent == "cancel":
            return "IllegalTransition"
        if job.intent != "pause":
            job.intent = "pause"
            job.timeline.append("pause_requested")
            if job.status == "queued":
                self._becomes(job, "paused")
        return None

    def resume(self, job_id: str) -> str | None:
        job = self.jobs[job_id]
        if job.status in TERMINAL or job.intent == "cancel":
            return "IllegalTransition"
        if job.intent == "pause":
            job.intent = "run"
            job.timeline.append("resume_requested")
            if job.status == "paused":
                self._becomes(job, "queued")
        return None

    def retry(self, job_id: str) -> str | None:
        job = self.jobs[job_id]
        if job.status in ("failed", "cancelled"):
            job.intent, job.strikes, job.delay_s, job.ran_s = "run", 0, 0.0, 0.0
            job.timeline.append("retry_requested")
            self._becomes(job, "queued")
            return None
        return None if job.status in ("queued", "running") and job.intent != "cancel" else "IllegalTransition"

    def preempt(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.status == "running" and job.intent == "run":
            job.intent = "preempt"
            job.timeline.append("preempt_requested")

    def _release(self, attempt_id: str, *, to: str) -> None:
        """A card that its host can see is free only once it has been looked at again."""
        for device in self.devices.values():
            if device.holder == attempt_id:
                device.state = to
                if to == "free":
                    device.holder = None
                    device.unfit = device.unfit or (UNSEEN if device.health is not None else None)

    def _end(self, job: Job, reason: str) -> str:
        """The closing table."""
        job.delay_s = 0.0
        if reason == "completed":
            return "succeeded"
        if job.intent == "cancel":
            return "cancelled"
        if job.intent == "pause":
            return "paused"
        if reason in ("preempted", "paused"):
            return "queued"
        if reason not in TRIES:
            return "failed"
        job.strikes += 1
        if job.strikes >= TRIES[reason]:
            return "failed"
        job.delay_s = min(FIRST_DELAY_S * 2 ** (job.strikes - 1), 360.0)
        return "queued"

    def _becomes(self, job: Job, status: str) -> None:
        job.status = status
        if status == "queued":
            job.intent = "run"
        job.timeline.append("status")


class Judge:
    """Calls a beat dead that it saw standing still for the lease's length, on its own clock; a gap in its watch begins it anew."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked_at: float | None = None

    def look(self, now: float, beats: Mapping[str, int]) -> set[str]:
        if self._looked_at is None or now - self._looked_at > self._lease_s / 2:
            self._seen = {}
        self._looked_at = now
        self._seen = {
            name: seen if (seen := self._seen.get(name)) is not None and seen[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        return {name for name, (_, since) in self._seen.items() if now - since >= self._lease_s}


class Queue:
    """How long a job that failed still waits: counted by whoever plans, from when it first saw the job waiting."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float] = {}

    def left_s(self, now: float, jobs: Mapping[str, Job]) -> dict[str, float]:
        """The queued jobs, each with the seconds that it must wait yet; 0 or less: it may start."""
        queued = {job_id: job for job_id, job in jobs.items() if job.status == "queued"}
        waiting = {(job_id, len(job.attempts)): now for job_id, job in queued.items() if job.delay_s > 0}
        self._since = {key: self._since.get(key, now) for key in waiting}
        return {
            job_id: self._since[job_id, len(job.attempts)] + job.delay_s - now if job.delay_s > 0 else 0.0
            for job_id, job in queued.items()
        }
