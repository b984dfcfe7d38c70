"""`python -m migrations`: bring the configured database to the newest schema. Safe to run again, and while jobs run."""

from __future__ import annotations

import os
import sys

from sqlalchemy.exc import SQLAlchemyError

from migrations.upgrade import upgrade
from store.errors import LongyardError
from store.settings import load


def main() -> None:
    try:
        settings = load()
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An embedded database is for its own account.
        os.umask(0o077)
        upgrade(settings.db_url)
    except (LongyardError, OSError) as error:
        sys.exit(str(error))
    except SQLAlchemyError as error:
        cause = error.__cause__ or error
        sys.exit(
            f"the database cannot be used: {str(cause).splitlines()[0]}\n(LONGYARD_DATABASE_URL; empty, it lies in LONGYARD_DATA_DIR)"
        )


if __name__ == "__main__":
    main()
