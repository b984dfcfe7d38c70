"""Rank logs as text that is safe to show: UTF-8 decoded, control bytes replaced, colours kept.

Bytes come in pieces that may end inside a character or a colour code; such an end waits for the next piece.
"""

from __future__ import annotations

import re
from typing import Final

_COLOUR: Final = r"\x1b\[[0-9;]{0,32}m"
_UNSAFE: Final = re.compile(rf"{_COLOUR}|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CUT: Final = re.compile(
    rb"(?:\x1b(?:\[[0-9;]{0,32})?|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z"
)
MAX_CUT_BYTES: Final = 34  # escape, bracket and 32 parameters
REPLACEMENT: Final = "\ufffd"


def cut(data: bytes) -> int:
    """How many bytes at the end may be the beginning of a character or a colour code."""
    found = _CUT.search(data[-MAX_CUT_BYTES:])
    return len(found[0]) if found else 0


def text(data: bytes) -> str:
    """Safe text of whole characters and codes."""
    return _UNSAFE.sub(lambda match: match[0] if len(match[0]) > 1 else REPLACEMENT, data.decode("utf-8", "replace"))


class Decoder:
    """Text of bytes that come in pieces, in order."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> str:
        data = self._held + data
        num_held = cut(data)
        self._held = data[len(data) - num_held :]
        return text(data[: len(data) - num_held])

    def finish(self) -> str:
        data, self._held = self._held, b""
        return text(data)


class Lines:
    """Only the lines that contain `needle`, of text that comes in pieces. A line that never ends is let go at a limit."""

    MAX_CHARS: Final = 1 << 20

    def __init__(self, needle: str) -> None:
        self._needle, self._held = needle, ""

    def feed(self, piece: str) -> str:
        *whole, self._held = (self._held + piece).split("\n")
        found = "".join(f"{line}\n" for line in whole if self._needle in line)
        return found + (self.finish() if len(self._held) > self.MAX_CHARS else "")

    def finish(self) -> str:
        line, self._held = self._held, ""
        return line if line and self._needle in line else ""
