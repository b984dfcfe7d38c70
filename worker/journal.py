"""Owns how the worker's processes log: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from store.settings import Settings


def configure(settings: Settings, **context: str) -> None:
    """Send this process's log records to stderr; `context` (an attempt's id, say) stands in each of them."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines(context))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # Celery tells of every hint twice.
    logging.getLogger("celery").setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


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
