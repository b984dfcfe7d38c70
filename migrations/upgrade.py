"""Runs the revisions against one database, one runner at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url, text

from store.db import Database
from store.errors import UnsuitableDisk

ADVISORY_LOCK: Final = 0x10_4779_6172_64
"""Any number nobody else uses; PostgreSQL holds it for the runner's transaction. SQLite's BEGIN IMMEDIATE does the same there."""

BUSY_TIMEOUT_S: Final = 60.0

NETWORK_DISKS: Final = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "sshfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "afs",
        "9p",
        "ocfs2",
        "s3fs",
        "juicefs",
    ]
)


def upgrade(url: str) -> None:
    """Bring the database at `url` to the newest revision. Raises UnsuitableDisk where SQLite would lie on a network disk."""
    refuse_network_disk(url)
    database = Database(url, busy_timeout_s=BUSY_TIMEOUT_S)
    try:
        with database.write() as session:
            connection = session.connection()
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            command.upgrade(_config(connection), "head")
    finally:
        database.dispose()


def refuse_network_disk(url: str) -> None:
    """SQLite's locks do not hold on a network file system: two hosts would each believe themselves alone. Raises UnsuitableDisk."""
    database = make_url(url)
    if database.get_backend_name() != "sqlite" or not database.database:
        return
    path = Path(database.database).resolve()
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint))
    kind = next((mount.fstype for mount in reversed(mounts) if path.is_relative_to(mount.mountpoint)), "")
    if kind.removeprefix("fuse.") in NETWORK_DISKS:
        raise UnsuitableDisk(
            f"{path} is on {kind}, where SQLite cannot lock; set LONGYARD_DATA_DIR to a local disk, or use PostgreSQL"
        )


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
