"""The first schema, and the triggers that hold what a constraint cannot: what a row may become from what it was."""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NO_OPEN_ATTEMPT: Final = (
    "NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.id = NEW.attempt_id AND attempts.exit_reason IS NULL)"
)


class Guard(NamedTuple):
    """A trigger: the change of a row for which `refused` holds is refused."""

    name: str
    table: str
    change: str
    refused: str
    message: str


GUARDS: Final = (
    Guard(
        "jobs_transition",
        "jobs",
        "UPDATE OF status",
        "OLD.status <> NEW.status AND (OLD.status || ' ' || NEW.status) NOT IN ('queued running', 'queued paused', "
        "'queued cancelled', 'running queued', 'running paused', 'running succeeded', 'running failed', "
        "'running cancelled', 'paused queued', 'paused cancelled', 'failed queued', 'cancelled queued')",
        "a job that is this cannot become that",
    ),
    Guard(
        "jobs_cancel_is_sticky",
        "jobs",
        "UPDATE OF intent",
        "OLD.intent = 'cancel' AND NEW.intent <> 'cancel' AND NOT (OLD.status = 'cancelled' AND NEW.status = 'queued')",
        "a cancel is not taken back",
    ),
    Guard("attempts_closed_is_final", "attempts", "UPDATE", "OLD.exit_reason IS NOT NULL", "the attempt is closed"),
    Guard(
        "attempts_transition",
        "attempts",
        "UPDATE OF status",
        "OLD.status <> NEW.status AND (OLD.status || ' ' || NEW.status) IN ('running starting', 'starting succeeded')",
        "an attempt that is this cannot become that",
    ),
    Guard("events_are_final", "events", "UPDATE", "1 = 1", "an event is never rewritten"),
    Guard("rank_logs_fence", "rank_logs", "INSERT OR UPDATE", NO_OPEN_ATTEMPT, "the attempt is closed"),
    Guard("checkpoints_fence", "checkpoints", "INSERT", NO_OPEN_ATTEMPT, "the attempt is closed"),
)


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("device_type", sa.String(length=16), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("drained_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('online', 'draining', 'lost')", name=op.f("ck_hosts_status")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("preset", sa.String(length=64), nullable=False),
        sa.Column("train", sa.JSON(), nullable=False),
        sa.Column("num_devices", sa.Integer(), nullable=False),
        sa.Column("device_type", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("time_limit_s", sa.Double(), nullable=True),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("intent", sa.String(length=24), nullable=False),
        sa.Column("intent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("strikes", sa.Integer(), nullable=False),
        sa.Column("retry_delay_s", sa.Double(), nullable=False),
        sa.Column("ran_s", sa.Double(), nullable=False),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("num_events", sa.Integer(), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("wait_reason", sa.Text(), nullable=True),
        sa.Column("estimated_start_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reservation", sa.JSON(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("total_steps", sa.Integer(), nullable=True),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("intent IN ('run', 'pause', 'cancel', 'preempt')", name=op.f("ck_jobs_intent")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_jobs_status")
        ),
        sa.CheckConstraint("num_devices BETWEEN 1 AND 8", name=op.f("ck_jobs_num_devices")),
        sa.Column("is_running", sa.Integer(), sa.Computed("CASE WHEN status = 'running' THEN 1 END", persisted=True)),
        sa.CheckConstraint(
            "strikes >= 0 AND num_attempts >= 0 AND num_events >= 0 AND rev >= 0", name=op.f("ck_jobs_counters")
        ),
        sa.CheckConstraint("retry_delay_s >= 0 AND ran_s >= 0", name=op.f("ck_jobs_durations")),
        sa.CheckConstraint(
            "CASE status WHEN 'queued' THEN intent IN ('run') WHEN 'running' THEN intent IN ('run', 'pause', 'cancel', 'preempt') "
            "WHEN 'paused' THEN intent IN ('pause') WHEN 'succeeded' THEN intent IN ('run', 'pause', 'cancel', 'preempt') "
            "WHEN 'failed' THEN intent IN ('run', 'preempt') WHEN 'cancelled' THEN intent IN ('cancel') END",
            name=op.f("ck_jobs_intent_fits"),
        ),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('succeeded', 'failed', 'cancelled'))",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint(
            "started_at IS NOT NULL OR status NOT IN ('running', 'succeeded', 'failed')", name=op.f("ck_jobs_started")
        ),
        sa.CheckConstraint(
            "status = 'queued' OR (reservation IS NULL AND wait_reason IS NULL AND estimated_start_at IS NULL)",
            name=op.f("ck_jobs_only_the_queued_wait"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", "is_running", name=op.f("uq_jobs_id_is_running")),
        # SQLite can name a table before it is there, and could not add the key later.
        *([_running_needs_open()] if _is_sqlite() else []),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index("ix_jobs_owner_id", ["owner", "id"], unique=False)
        batch_op.create_index("ix_jobs_queue", ["status", "priority", "created_at", "id"], unique=False)

    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "tokens",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('token', 'session', 'login_code')", name=op.f("ck_tokens_kind")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_tokens")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("device_type", sa.String(length=16), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("exit_reason", sa.String(length=24), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("failing_rank", sa.Integer(), nullable=True),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=True),
        sa.Column("metrics_offset", sa.BigInteger(), nullable=False),
        sa.Column("ran_s", sa.Double(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "is_open",
            sa.Integer(),
            sa.Computed("CASE WHEN status IN ('starting', 'running') THEN 1 END", persisted=True),
        ),
        sa.CheckConstraint(
            "(exit_reason IS NULL) = (status IN ('starting', 'running'))", name=op.f("ck_attempts_closed_has_reason")
        ),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (status IN ('starting', 'running'))", name=op.f("ck_attempts_finished")
        ),
        sa.CheckConstraint(
            "started_at IS NOT NULL OR status NOT IN ('running', 'succeeded')", name=op.f("ck_attempts_started")
        ),
        sa.CheckConstraint(
            "CASE exit_reason WHEN 'completed' THEN status = 'succeeded' WHEN 'user_error' THEN status = 'failed' "
            "WHEN 'out_of_memory' THEN status = 'failed' WHEN 'diverged' THEN status = 'failed' "
            "WHEN 'storage' THEN status = 'failed' WHEN 'device_error' THEN status = 'failed' "
            "WHEN 'infra' THEN status = 'failed' WHEN 'hung' THEN status = 'failed' WHEN 'lease_expired' THEN status = 'lost' "
            "WHEN 'launch_error' THEN status = 'failed' WHEN 'user_cancelled' THEN status = 'cancelled' "
            "WHEN 'paused' THEN status = 'stopped' WHEN 'preempted' THEN status = 'stopped' "
            "WHEN 'time_limit' THEN status = 'failed' END",
            name=op.f("ck_attempts_reason_fits"),
        ),
        sa.CheckConstraint(
            "number >= 1 AND beat >= 0 AND metrics_offset >= 0 AND ran_s >= 0", name=op.f("ck_attempts_counters")
        ),
        sa.CheckConstraint(
            "exit_reason IN ('completed', 'user_error', 'out_of_memory', 'diverged', 'storage', 'device_error', 'infra', "
            "'hung', 'lease_expired', 'launch_error', 'user_cancelled', 'paused', 'preempted', 'time_limit')",
            name=op.f("ck_attempts_exit_reason"),
        ),
        sa.CheckConstraint(
            "status IN ('starting', 'running', 'succeeded', 'failed', 'cancelled', 'stopped', 'lost')",
            name=op.f("ck_attempts_status"),
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_attempts_host_hosts")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_attempts_job_id_number")),
        sa.UniqueConstraint("job_id", "is_open", name=op.f("uq_attempts_job_id_is_open")),
        sa.UniqueConstraint("host", "id", "is_open", name=op.f("uq_attempts_host_id_is_open")),
        sa.ForeignKeyConstraint(
            ["job_id", "is_open"],
            ["jobs.id", "jobs.is_running"],
            name=op.f("fk_attempts_job_id_is_open_jobs"),
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    if not _is_sqlite():
        op.create_foreign_key(
            op.f("fk_jobs_id_is_running_attempts"),
            "jobs",
            "attempts",
            ["id", "is_running"],
            ["job_id", "is_open"],
            deferrable=True,
            initially="DEFERRED",
        )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.create_index(
            "ix_attempts_open_on_host",
            ["host"],
            unique=False,
            sqlite_where=sa.text("status IN ('starting', 'running')"),
            postgresql_where=sa.text("status IN ('starting', 'running')"),
        )

    op.create_table(
        "events",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("previous", sa.Integer(), sa.Computed("CASE WHEN seq > 1 THEN seq - 1 END", persisted=True)),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_events_seq")),
        sa.ForeignKeyConstraint(
            ["job_id", "previous"],
            ["events.job_id", "events.seq"],
            name=op.f("fk_events_job_id_previous_events"),
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("ix_events_job_id_rev", ["job_id", "rev"], unique=False)

    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt_id", sa.String(length=36), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("dir", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unusable_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_checkpoints_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_checkpoints_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("attempt_id", "step", name=op.f("uq_checkpoints_attempt_id_step")),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.create_index("ix_checkpoints_job_id_id", ["job_id", "id"], unique=False)

    op.create_table(
        "devices",
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("cordoned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt_id", sa.String(length=36), nullable=True),
        sa.Column("health", sa.String(length=16), nullable=True),
        sa.Column("temperature_c", sa.Double(), nullable=True),
        sa.Column("utilization", sa.Double(), nullable=True),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("memory_total_bytes", sa.BigInteger(), nullable=True),
        sa.Column("unfit_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("state <> 'free' OR attempt_id IS NULL", name=op.f("ck_devices_free_has_no_holder")),
        sa.Column("is_held", sa.Integer(), sa.Computed("CASE WHEN state = 'held' THEN 1 END", persisted=True)),
        sa.CheckConstraint(
            "state NOT IN ('held', 'unverified') OR attempt_id IS NOT NULL", name=op.f("ck_devices_held_has_a_holder")
        ),
        sa.ForeignKeyConstraint(
            ["host", "attempt_id", "is_held"],
            ["attempts.host", "attempts.id", "attempts.is_open"],
            name=op.f("fk_devices_host_attempt_id_is_held_attempts"),
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.CheckConstraint("state IN ('free', 'held', 'unverified', 'quarantined')", name=op.f("ck_devices_state")),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_devices_attempt_id_attempts"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_devices_host_hosts"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host", "index", name=op.f("pk_devices")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_devices_attempt_id"), ["attempt_id"], unique=False)

    op.create_table(
        "log_chunks",
        sa.Column("attempt_id", sa.String(length=36), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            '"offset" >= 0 AND num_bytes > 0 AND num_bytes = length(data)', name=op.f("ck_log_chunks_num_bytes")
        ),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_log_chunks_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", "rank", "offset", name=op.f("pk_log_chunks")),
    )
    with op.batch_alter_table("log_chunks", schema=None) as batch_op:
        batch_op.create_index("ix_log_chunks_job_id_rev", ["job_id", "rev"], unique=False)

    op.create_table(
        "metric_points",
        sa.Column("attempt_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("flag", sa.String(length=4), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(value IS NULL) = (flag IS NOT NULL)", name=op.f("ck_metric_points_value_or_flag")),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_metric_points_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", "name", "step", name=op.f("pk_metric_points")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("metric_points", schema=None) as batch_op:
        batch_op.create_index("ix_metric_points_job_id_rev", ["job_id", "rev"], unique=False)

    op.create_table(
        "rank_logs",
        sa.Column("attempt_id", sa.String(length=36), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("end_offset", sa.BigInteger(), nullable=False),
        sa.Column("dropped_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("dropped_bytes BETWEEN 0 AND end_offset", name=op.f("ck_rank_logs_dropped_bytes")),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_rank_logs_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", "rank", name=op.f("pk_rank_logs")),
    )
    order = op.create_table(
        "queue_order",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job_ids", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_queue_order_one_row")),
        sa.CheckConstraint("length(job_ids) % 16 = 0", name=op.f("ck_queue_order_whole_ids")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_order")),
    )
    op.bulk_insert(order, [{"id": 1, "job_ids": b""}])
    for guard in GUARDS:
        _set(guard)


def downgrade() -> None:
    # The tables need each other's rows: emptied in this order, they can be dropped in any.
    op.execute("DELETE FROM devices")
    op.execute("DELETE FROM jobs")
    for guard in GUARDS:
        _lift(guard)
    if not _is_sqlite():
        op.drop_constraint(op.f("fk_jobs_id_is_running_attempts"), "jobs", type_="foreignkey")
    op.drop_table("queue_order")
    op.drop_table("rank_logs")
    with op.batch_alter_table("metric_points", schema=None) as batch_op:
        batch_op.drop_index("ix_metric_points_job_id_rev")

    op.drop_table("metric_points")
    with op.batch_alter_table("log_chunks", schema=None) as batch_op:
        batch_op.drop_index("ix_log_chunks_job_id_rev")

    op.drop_table("log_chunks")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_devices_attempt_id"))

    op.drop_table("devices")
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.drop_index("ix_checkpoints_job_id_id")

    op.drop_table("checkpoints")
    op.drop_table("idempotency_keys")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("ix_events_job_id_rev")

    op.drop_table("events")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_attempts_open_on_host",
            sqlite_where=sa.text("status IN ('starting', 'running')"),
            postgresql_where=sa.text("status IN ('starting', 'running')"),
        )

    op.drop_table("attempts")
    op.drop_table("tokens")
    op.drop_table("leases")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_queue")
        batch_op.drop_index("ix_jobs_owner_id")

    op.drop_table("jobs")
    op.drop_table("hosts")


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _running_needs_open() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["id", "is_running"],
        ["attempts.job_id", "attempts.is_open"],
        name=op.f("fk_jobs_id_is_running_attempts"),
        deferrable=True,
        initially="DEFERRED",
    )


def _set(guard: Guard) -> None:
    name, table, change, refused, message = guard
    if _is_sqlite():
        for one in change.split(" OR "):
            op.execute(
                f"CREATE TRIGGER {_trigger(name, one)} BEFORE {one} ON {table} WHEN {refused} "
                f"BEGIN SELECT RAISE(ABORT, '{table}: {message}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {refused} THEN "
        f"RAISE EXCEPTION '{table}: {message}' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")


def _lift(guard: Guard) -> None:
    if _is_sqlite():
        for one in guard.change.split(" OR "):
            op.execute(f"DROP TRIGGER {_trigger(guard.name, one)}")
        return
    op.execute(f"DROP TRIGGER {guard.name} ON {guard.table}")
    op.execute(f"DROP FUNCTION {guard.name}()")


def _trigger(name: str, change: str) -> str:
    """SQLite's triggers are of one kind of change each."""
    return f"{name}_{change.split()[0].lower()}"
