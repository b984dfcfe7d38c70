"""Owns whether a card can be given work: well, and clean, which is as empty as an idle one is and not empty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from store.device_health import Reading
from worker.devices.report import USABLE, Card, CardProcess, Report

IDLE_MB: Final[Mapping[str, int]] = {"npu": 4096, "cuda": 1024}
"""What a card may hold at most while nothing runs on it. An idle NPU shows 2.8 to 3.4 GB."""

SLACK_MB: Final = 1024
"""More than this above the least that was ever seen of the card is somebody's."""

MAX_NAMED: Final = 3
MOST_MB: Final = 1 << 30


class Fitness:
    """What was learnt of this host's cards since the worker started: the least that each holds."""

    def __init__(self, device_type: str, tool_name: str) -> None:
        self._may_hold_mb = IDLE_MB[device_type]
        self._tool_name = tool_name
        self._baseline_mb: dict[int, int] = {}

    def read(self, report: Report) -> list[Reading]:
        """The cards in the runtime's order: 0 is the one with the least number, whatever that number is."""
        tenants: dict[int, list[CardProcess]] = defaultdict(list)
        for one in report.processes:
            tenants[one.index].append(one)
        return [
            Reading(
                position,
                card.health,
                card.temperature_c,
                card.utilisation_percent,
                _bytes(card.memory_used_mb),
                _bytes(card.memory_total_mb),
                ailment=self._ailment(card),
                residue=self._residue(card, tenants[card.index]),
            )
            for position, card in enumerate(report.cards)
        ]

    def _ailment(self, card: Card) -> str | None:
        if card.health not in USABLE:
            return f"{self._tool_name} says its health is {card.health.upper()}"
        return f"{self._tool_name} does not say how it is: {card.unread}" if card.unread else None

    def _residue(self, card: Card, tenants: Sequence[CardProcess]) -> str | None:
        used_mb = card.memory_used_mb
        if tenants:
            named = ", ".join(f"{one.pid} ({one.name})" for one in tenants[:MAX_NAMED])
            more = f" and {len(tenants) - MAX_NAMED} more" if len(tenants) > MAX_NAMED else ""
            return f"{'processes' if len(tenants) > 1 else 'process'} {named}{more} of nobody's job on it"
        if used_mb is None:
            return None
        baseline_mb = self._baseline_mb.get(card.index, self._may_hold_mb - SLACK_MB)
        if used_mb > baseline_mb + SLACK_MB:
            return (
                f"{(used_mb - baseline_mb) / 1024:.1f} GiB more of its memory taken than while idle, by nobody it shows"
            )
        self._baseline_mb[card.index] = min(used_mb, self._baseline_mb.get(card.index, used_mb))
        return None


def unanswered(num_devices: int, words: str) -> list[Reading]:
    """What is known of the cards of a host whose tool does not answer: nothing, so that nobody is sent there."""
    return [Reading(index, "unknown", ailment=words) for index in range(num_devices)]


def _bytes(count_mb: int | None) -> int | None:
    """None too where a tool tells what no card has, as -1 without a sign."""
    return count_mb << 20 if count_mb is not None and 0 <= count_mb <= MOST_MB else None
