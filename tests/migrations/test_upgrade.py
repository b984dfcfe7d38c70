from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from migrations import upgrade as module
from migrations.upgrade import upgrade
from store.db import REVISION, Database
from store.errors import UnsuitableDisk
from store.models import Base


def test_the_migrations_make_exactly_the_models(database: Database) -> None:
    with database.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_code_knows_the_newest_revision(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]
    assert database.schema_revision() == REVISION


def test_a_second_run_and_two_at_once_change_nothing(database_url: str, database: Database) -> None:
    threads = [threading.Thread(target=upgrade, args=(database_url,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.schema_revision() == REVISION


def test_it_can_be_taken_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/longyard.db"
    upgrade(url)
    database = Database(url)
    with database.write() as session:
        command.downgrade(module._config(session.connection()), "base")
    assert database.schema_revision() is None
    database.dispose()


def test_sqlite_on_a_network_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mount:
        mountpoint, fstype = str(tmp_path), "nfs4"

    monkeypatch.setattr(module.psutil, "disk_partitions", lambda **_: [Mount])
    with pytest.raises(UnsuitableDisk, match="LONGYARD_DATA_DIR"):
        upgrade(f"sqlite:///{tmp_path}/longyard.db")
