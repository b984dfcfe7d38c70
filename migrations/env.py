"""Alembic's entry: runs the revisions on the connection that `upgrade` hands over, or on the configured database (`alembic` by hand)."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from store import models
from store.db import Database
from store.settings import Settings


def run(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=models.Base.metadata, render_as_batch=True, compare_type=True
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(Settings().db_url).write() as session:
        run(session.connection())
