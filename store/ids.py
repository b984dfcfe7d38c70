"""Identifiers: UUIDv7 in text, so that ids sort by the time they were made."""

from __future__ import annotations

import uuid_utils


def new() -> str:
    return str(uuid_utils.uuid7())
