"""Owns how the worker's processes log: one JSON object a line, on stderr; and what such a log says last."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from store.settings import Settings
from worker.ingest.tail import printable

LOOK_BACK_BYTES: Final = 16 * 1024


def configure(settings: Settings, **context: str) -> None:
    """Send this process's log records to stderr; `context` (an attempt's id, say) stands in each of them."""
    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    stand_for(**context)
    root.setLevel(settings.log_level.upper())
    # Celery tells of every hint twice.
    logging.getLogger("celery").setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def stand_for(**context: str) -> None:
    """Another context in a process that is configured. After a fork: it touches no other logger, whose pages would have to be copied."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_JsonLines(context))


def last_words(path: Path) -> str | None:
    """The last line that says anything, printable: of a traceback its exception, of a record its error or message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOOK_BACK_BYTES))
            lines = file.read(LOOK_BACK_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    line = next((line.strip() for line in reversed(lines) if line.strip()), None)
    if line is None:
        return None
    try:
        record: Any = json.loads(line)
    except ValueError:
        return printable(line)
    if isinstance(record, dict):
        line = str(record.get("error") or record.get("message")).splitlines()[-1]
    return printable(line)


class _JsonLines(logging.Formatter):
    def __init__(self, context: dict[str, str]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "from": record.name,
            "pid": record.process,
            **self._context,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
