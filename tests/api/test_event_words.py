"""Every kind of event that the code tells of a job has a sentence on its page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TELLERS = {"append": 1, "following": 1, "_tell_once": 2, "note": 0}
"""Which calls write an event, and where its kind stands when it is not named."""


def test_every_kind_of_event_has_a_sentence() -> None:
    page = (ROOT / "web/src/lib/eventText.ts").read_text("utf-8")
    known = set(re.findall(r"^    (\w+): \(", page, re.MULTILINE))
    told = {kind for room in ("store", "worker") for path in (ROOT / room).rglob("*.py") for kind in _kinds(path)}
    assert {"submitted", "status", "hung", "log_capped", "device_wants_reset"} <= told, "the search finds them no more"
    assert told <= known, f"no sentence for {sorted(told - known)}"


def _kinds(path: Path) -> Iterator[str]:
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr not in TELLERS:
            continue
        if call.func.attr in ("append", "following") and not (
            isinstance(call.func.value, ast.Name) and call.func.value.id == "events"
        ):
            continue
        place = TELLERS[call.func.attr]
        named = [keyword.value for keyword in call.keywords if keyword.arg == "kind"]
        for kind in named or call.args[place : place + 1]:
            yield from (
                one.value for one in ast.walk(kind) if isinstance(one, ast.Constant) and isinstance(one.value, str)
            )
