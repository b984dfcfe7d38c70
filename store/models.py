"""The tables, in one file. Every invariant that SQL can hold is a constraint here, or a trigger in `migrations/` if it is about a change.

Rows that need each other (a running job and its open attempt) are tied by deferred foreign keys over computed flags. A flag is 1 or null,
a null is tied to nothing, and the commit looks whether the ties hold. The mappers do not know the flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from store.db import Base, UtcDateTime
from store.states import (
    ATTEMPT_STATUS_OF,
    INTENTS,
    OPEN_ATTEMPT,
    TERMINAL_JOB,
    AttemptStatus,
    DeviceState,
    ExitReason,
    HostStatus,
    Intent,
    JobStatus,
)

ID = String(36)
"""A UUIDv7 in text: sorts by time of making, so the newest job has the greatest id."""


def _one_of(column: str, values: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


def _by_case(column: str, answers: Mapping[Any, str]) -> str:
    return f"CASE {column} {' '.join(f'WHEN {one.value!r} THEN {answer}' for one, answer in answers.items())} END"


def _flag(name: str, condition: str) -> Column[Any]:
    return Column(name, Integer, Computed(f"CASE WHEN {condition} THEN 1 END", persisted=True))


def _tie(columns: list[str], target: list[str], *, is_mutual: bool = False) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(columns, target, deferrable=True, initially="DEFERRED", use_alter=is_mutual)


def _enum(values: type[StrEnum]) -> Enum:
    """Text in the database, the StrEnum in Python. The CHECK is written out, so that a migration can see it."""
    return Enum(
        values,
        native_enum=False,
        length=24,
        create_constraint=False,
        values_callable=lambda kind: [str(one) for one in kind],
    )


_TERMINAL = _one_of("status", [one for one in JobStatus if one in TERMINAL_JOB])
_OPEN = _one_of("status", [one for one in AttemptStatus if one in OPEN_ATTEMPT])


class Job(Base):
    """What the user asked for. `rev` grows with every transaction that writes anything of the job: it is the cursor of its streams.

    `ran_s`: how long its closed attempts had devices, since it was submitted or last retried; `time_limit_s` bounds it. `reservation`:
    the devices that are kept for it while it waits (`store.placement.Reservation`).
    """

    __tablename__ = "jobs"
    __mapper_args__ = {"exclude_properties": ["is_running"]}  # noqa: RUF012 - SQLAlchemy reads it once
    __table_args__ = (
        CheckConstraint(_one_of("status", JobStatus), name="status"),
        CheckConstraint(_one_of("intent", Intent), name="intent"),
        CheckConstraint("num_devices BETWEEN 1 AND 8", name="num_devices"),
        CheckConstraint("strikes >= 0 AND num_attempts >= 0 AND num_events >= 0 AND rev >= 0", name="counters"),
        CheckConstraint("retry_delay_s >= 0 AND ran_s >= 0", name="durations"),
        CheckConstraint(
            _by_case(
                "status",
                {status: _one_of("intent", [one for one in Intent if one in INTENTS[status]]) for status in JobStatus},
            ),
            name="intent_fits",
        ),
        CheckConstraint(f"(finished_at IS NOT NULL) = ({_TERMINAL})", name="finished"),
        CheckConstraint("started_at IS NOT NULL OR status NOT IN ('running', 'succeeded', 'failed')", name="started"),
        CheckConstraint(
            "status = 'queued' OR (reservation IS NULL AND wait_reason IS NULL AND estimated_start_at IS NULL)",
            name="only_the_queued_wait",
        ),
        _flag("is_running", "status = 'running'"),
        UniqueConstraint("id", "is_running"),
        _tie(["id", "is_running"], ["attempts.job_id", "attempts.is_open"], is_mutual=True),
        Index("ix_jobs_queue", "status", "priority", "created_at", "id"),
        Index("ix_jobs_owner_id", "owner", "id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    preset: Mapped[str] = mapped_column(String(64))
    train: Mapped[dict[str, Any]] = mapped_column(JSON)
    num_devices: Mapped[int]
    device_type: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    time_limit_s: Mapped[float | None]

    status: Mapped[JobStatus] = mapped_column(_enum(JobStatus))
    status_reason: Mapped[str | None] = mapped_column(Text)
    intent: Mapped[Intent] = mapped_column(_enum(Intent))
    intent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    strikes: Mapped[int] = mapped_column(default=0)
    retry_delay_s: Mapped[float] = mapped_column(default=0.0)
    ran_s: Mapped[float] = mapped_column(default=0.0)
    num_attempts: Mapped[int] = mapped_column(default=0)
    num_events: Mapped[int] = mapped_column(default=0)
    rev: Mapped[int] = mapped_column(BigInteger, default=0)

    wait_reason: Mapped[str | None] = mapped_column(Text)
    estimated_start_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    reservation: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    step: Mapped[int | None]
    total_steps: Mapped[int | None]
    phase: Mapped[str | None] = mapped_column(String(16))
    eta_s: Mapped[float | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Attempt(Base):
    """One execution of a job on one host. Its lease is `beat`: whoever holds it counts it up; a judge watches it stand still."""

    __tablename__ = "attempts"
    __mapper_args__ = {"exclude_properties": ["is_open"]}  # noqa: RUF012
    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        _flag("is_open", _OPEN),
        UniqueConstraint("job_id", "is_open"),
        UniqueConstraint("host", "id", "is_open"),
        _tie(["job_id", "is_open"], ["jobs.id", "jobs.is_running"]),
        Index("ix_attempts_open_on_host", "host", sqlite_where=text(_OPEN), postgresql_where=text(_OPEN)),
        CheckConstraint(_one_of("status", AttemptStatus), name="status"),
        CheckConstraint(_one_of("exit_reason", ExitReason), name="exit_reason"),
        CheckConstraint(f"(exit_reason IS NULL) = ({_OPEN})", name="closed_has_reason"),
        CheckConstraint(f"(finished_at IS NULL) = ({_OPEN})", name="finished"),
        CheckConstraint("started_at IS NOT NULL OR status NOT IN ('running', 'succeeded')", name="started"),
        CheckConstraint(
            _by_case("exit_reason", {reason: f"status = {ATTEMPT_STATUS_OF[reason].value!r}" for reason in ExitReason}),
            name="reason_fits",
        ),
        CheckConstraint("number >= 1 AND beat >= 0 AND metrics_offset >= 0 AND ran_s >= 0", name="counters"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int]
    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    device_type: Mapped[str] = mapped_column(String(16))
    devices: Mapped[list[int]] = mapped_column(JSON)
    simulated: Mapped[bool] = mapped_column(default=False)
    status: Mapped[AttemptStatus] = mapped_column(_enum(AttemptStatus))
    exit_reason: Mapped[ExitReason | None] = mapped_column(_enum(ExitReason))
    message: Mapped[str | None] = mapped_column(Text)
    failing_rank: Mapped[int | None]
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    boot_id: Mapped[str | None] = mapped_column(String(64))
    metrics_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    ran_s: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Host(Base):
    """A machine that runs a worker. `beat` works as an attempt's does. `status` is what its worker makes of it, `drained_at` a person's
    wish, which outlives the worker: nothing new starts there."""

    __tablename__ = "hosts"
    __table_args__ = (CheckConstraint(_one_of("status", HostStatus), name="status"),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[HostStatus] = mapped_column(_enum(HostStatus))
    device_type: Mapped[str] = mapped_column(String(16))
    simulated: Mapped[bool] = mapped_column(default=False)
    boot_id: Mapped[str] = mapped_column(String(64))
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    registered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    drained_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Device(Base):
    """One NPU, GPU or CPU slot. One row, one holder: two attempts cannot hold it, nor one that is closed.

    `health` to `memory_total_bytes` are what the vendor's tool said last, null where it does not say; `utilization` is in percent.
    `unfit_reason`: why it is given to nobody although nobody holds it, in words.
    """

    __tablename__ = "devices"
    __mapper_args__ = {"exclude_properties": ["is_held"]}  # noqa: RUF012
    __table_args__ = (
        CheckConstraint(_one_of("state", DeviceState), name="state"),
        CheckConstraint("state <> 'free' OR attempt_id IS NULL", name="free_has_no_holder"),
        CheckConstraint("state NOT IN ('held', 'unverified') OR attempt_id IS NOT NULL", name="held_has_a_holder"),
        _flag("is_held", "state = 'held'"),
        _tie(["host", "attempt_id", "is_held"], ["attempts.host", "attempts.id", "attempts.is_open"]),
    )

    host: Mapped[str] = mapped_column(ForeignKey("hosts.name", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[DeviceState] = mapped_column(_enum(DeviceState))
    cordoned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempt_id: Mapped[str | None] = mapped_column(ForeignKey("attempts.id", ondelete="SET NULL"), index=True)
    health: Mapped[str | None] = mapped_column(String(16))
    temperature_c: Mapped[float | None]
    utilization: Mapped[float | None]
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    memory_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    unfit_reason: Mapped[str | None] = mapped_column(Text)


class Event(Base):
    """An append-only fact on a job; `seq` is dense from 1."""

    __tablename__ = "events"
    __mapper_args__ = {"exclude_properties": ["previous"]}  # noqa: RUF012
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        Column("previous", Integer, Computed("CASE WHEN seq > 1 THEN seq - 1 END", persisted=True)),
        _tie(["job_id", "previous"], ["events.job_id", "events.seq"]),
        Index("ix_events_job_id_rev", "job_id", "rev"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    rev: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class MetricPoint(Base):
    """`value` is null where `flag` says nan, inf or -inf: SQLite would turn NaN into null by itself, and tell nobody."""

    __tablename__ = "metric_points"
    __table_args__ = (
        Index("ix_metric_points_job_id_rev", "job_id", "rev"),
        CheckConstraint("(value IS NULL) = (flag IS NOT NULL)", name="value_or_flag"),
        {"sqlite_with_rowid": False},
    )

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ID)
    rev: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float | None]
    flag: Mapped[str | None] = mapped_column(String(4))
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class RankLog(Base):
    """How far one rank's log has been committed, and how many of its bytes were dropped at the cap."""

    __tablename__ = "rank_logs"
    __table_args__ = (CheckConstraint("dropped_bytes BETWEEN 0 AND end_offset", name="dropped_bytes"),)

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    end_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    dropped_bytes: Mapped[int] = mapped_column(BigInteger, default=0)


class LogChunk(Base):
    """Contiguous bytes of one rank's output, from `offset` on."""

    __tablename__ = "log_chunks"
    __table_args__ = (
        CheckConstraint('"offset" >= 0 AND num_bytes > 0 AND num_bytes = length(data)', name="num_bytes"),
        Index("ix_log_chunks_job_id_rev", "job_id", "rev"),
    )

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ID)
    rev: Mapped[int] = mapped_column(BigInteger)
    num_bytes: Mapped[int] = mapped_column(Integer)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Checkpoint(Base):
    """It exists once this row does; resuming reads rows, never a directory listing. `unusable_at`: it was looked at, and is not whole."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("attempt_id", "step"), Index("ix_checkpoints_job_id_id", "job_id", "id"))

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    rev: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    dir: Mapped[str] = mapped_column(Text)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    unusable_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Token(Base):
    """A secret's SHA-256, never the secret. `kind`: token (API), session (cookie), login_code (once)."""

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint("kind IN ('token', 'session', 'login_code')", name="kind"),)

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(128))
    scope: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Lease(Base):
    """A role that one process at a time plays (`sweep`); counted up as an attempt's beat is."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    beat: Mapped[int] = mapped_column(BigInteger, default=0)


class QueueOrder(Base):
    """One row: the queue in the order of the last planning pass, 16 bytes a job. A job's position is its place in it."""

    __tablename__ = "queue_order"
    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("length(job_ids) % 16 = 0", name="whole_ids"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_ids: Mapped[bytes] = mapped_column(LargeBinary)
