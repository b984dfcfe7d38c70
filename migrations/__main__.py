"""`python -m migrations`: bring the configured database to the newest schema. Safe to run again, and while jobs run."""

from __future__ import annotations

import sys

from migrations.upgrade import upgrade
from store.errors import LongyardError
from store.settings import Settings


def main() -> None:
    settings = Settings()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        upgrade(settings.db_url)
    except LongyardError as error:
        sys.exit(f"migrations: {error}")


if __name__ == "__main__":
    main()
