"""What a mutant is: exact replacements in a copy of the code, and the tests that must notice them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LIFE: Final = "tests/store/test_state_machine.py"


class Rotten(Exception):
    """The code that a mutant changes is no longer there, or more than once."""


@dataclass(frozen=True)
class Edit:
    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Raises Rotten."""
        path = root / self.path
        text = path.read_text()
        if text.count(self.old) != 1:
            raise Rotten(f"{self.path} has this {text.count(self.old)} times, not once:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutant:
    """`fault` says what is wrong with it; `tests` are pytest's arguments."""

    name: str
    fault: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...] = (LIFE,)


def one(name: str, fault: str, path: str, old: str, new: str, test: str = LIFE) -> Mutant:
    return Mutant(name, fault, (Edit(path, old, new),), (test,))
