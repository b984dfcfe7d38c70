"""Identifiers: UUIDv7 in text, so that ids sort by the time they were made."""

from __future__ import annotations

from datetime import datetime

import uuid_utils


def new() -> str:
    return str(uuid_utils.uuid7())


def floor(moment: datetime) -> str:
    """Not greater than any id that was made from that moment on."""
    stamp = f"{int(moment.timestamp() * 1000):012x}"
    return f"{stamp[:8]}-{stamp[8:]}-0000-0000-000000000000"
