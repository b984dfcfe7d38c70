"""Owns the words of a check: a finding says what is wrong, why that matters, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """`check` names who found it. `fix` is a command, or what a person has to do where there is none.

    `dooms_jobs`: whatever is started here fails, so nothing is; with `devices`, on those alone.
    """

    check: str
    level: Level
    what: str
    why: str
    fix: str
    dooms_jobs: bool = False
    devices: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """What and the way out, on one line."""
        return f"{self.what}; {self.fix}"
