"""The engine and its two kinds of session: `read()` and `write()`. Functions of the store never commit; these blocks do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import DateTime, Dialect, Engine, MetaData, create_engine, event, insert, inspect, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator

REVISION: Final = "0001"
"""The schema this code was written for; `migrations/` ends with it, which a test holds true."""

API_BUSY_TIMEOUT_S: Final = 2.0
SUPERVISOR_BUSY_TIMEOUT_S: Final = 30.0
IDLE_TRANSACTION_S: Final = 20.0
"""PostgreSQL ends a transaction that asks nothing for so long: one whose process stands still would keep its job locked."""

DEAD_PEER: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""libpq's: a server that is cut off without a word is given up after 25 s. Left to itself, the kernel waits for an answer for two hours."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on both databases; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "a naive datetime reached the database"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def insert_together(session: Session, rows: Sequence[Base]) -> None:
    """Rows of one table in one statement, without a unit of work: for the paths where a millisecond counts. They join no session."""
    if rows:
        table = type(rows[0]).__table__
        columns = [column.key for column in table.columns if column.computed is None]
        values = [{name: getattr(row, name) for name in columns} for row in rows]
        session.connection().execute(insert(type(rows[0])), values)


def now() -> datetime:
    """The wall clock, for people to read. Nothing is ever decided by comparing two of these."""
    return datetime.now(UTC)


class Database:
    """One engine. SQLite runs in WAL with synchronous=FULL; a write there is BEGIN IMMEDIATE, so it never fails half-way on a lock."""

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = API_BUSY_TIMEOUT_S,
        pool_size: int = 5,
        idle_transaction_s: float = IDLE_TRANSACTION_S,
    ) -> None:
        self.engine = _engine(
            url, busy_timeout_s=busy_timeout_s, pool_size=pool_size, idle_transaction_s=idle_transaction_s
        )
        self._writing = self.engine.execution_options(longyard_begin="BEGIN IMMEDIATE")

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Generator[Session]:
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Generator[Session]:
        """Commits at the end of the block, rolls back on any exception."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def schema_revision(self) -> str | None:
        """The revision the database is at; None where it has no schema yet."""
        with self.read() as session:
            if not inspect(session.connection()).has_table("alembic_version"):
                return None
            return session.scalar(text("SELECT version_num FROM alembic_version"))

    def clock(self) -> datetime | None:
        """What its server's says; None for SQLite, which reads this machine's."""
        if self.is_sqlite:
            return None
        with self.read() as session:
            return session.scalar(text("SELECT clock_timestamp()"))

    def dispose(self) -> None:
        self.engine.dispose()


def _engine(url: str, *, busy_timeout_s: float, pool_size: int, idle_transaction_s: float) -> Engine:
    if make_url(url).get_backend_name() == "sqlite":
        return _sqlite(url, busy_timeout_s=busy_timeout_s, pool_size=pool_size)
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=busy_timeout_s,
        connect_args={
            "connect_timeout": max(2, int(busy_timeout_s)),
            **DEAD_PEER,
            "options": f"-c lock_timeout={int(busy_timeout_s * 1000)} -c timezone=utc"
            f" -c idle_in_transaction_session_timeout={int(idle_transaction_s * 1000)}",
        },
    )


def _sqlite(url: str, *, busy_timeout_s: float, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=busy_timeout_s,
        connect_args={"timeout": busy_timeout_s, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:  # pyright: ignore[reportUnusedFunction]
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    # The driver would begin by itself only before a write, and never IMMEDIATE; with isolation_level=None it leaves that to us.
    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql(connection.get_execution_options().get("longyard_begin", "BEGIN"))

    return engine
