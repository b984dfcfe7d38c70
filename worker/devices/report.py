"""Owns what a vendor's tool says of this host's cards: the words, and the reading of `npu-smi info` and of nvidia-smi's list.

A card here is one device as the runtime indexes it: a chip of an NPU, or a GPU.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Health(StrEnum):
    """As npu-smi says it; a tool that says nothing of health says `unknown`."""

    OK = "ok"
    WARNING = "warning"
    ALARM = "alarm"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


USABLE: Final = (Health.OK, Health.WARNING, Health.UNKNOWN)
"""A warning is told and worked with; an alarm or worse is not given work."""


@dataclass(frozen=True)
class Card:
    """What is known of one device; None where the tool does not say. Memory is HBM where the card has any.

    `unread` quotes the tool where it does not say how this card is: in none of the known forms, or nothing at all.
    """

    index: int
    name: str
    health: Health
    bus_id: str | None
    temperature_c: float | None
    utilisation_percent: float | None
    memory_used_mb: int | None
    memory_total_mb: int | None
    power_w: float | None
    unread: str | None = None


@dataclass(frozen=True)
class CardProcess:
    """A process on a card. `pid` is the host's; `pid_in_container` where the tool tells it apart."""

    index: int
    pid: int
    pid_in_container: int | None
    name: str
    memory_mb: int | None


@dataclass(frozen=True)
class Report:
    """Cards by index, and who is on them."""

    version: str | None
    cards: tuple[Card, ...]
    processes: tuple[CardProcess, ...]


class Unreadable(ValueError):
    """The tool's answer is not one of the known forms; the message quotes the line."""


NVIDIA_QUERY: Final = (
    "index",
    "name",
    "pci.bus_id",
    "temperature.gpu",
    "utilization.gpu",
    "memory.used",
    "memory.total",
    "power.draw",
)
"""Fields for `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`."""


NVIDIA_PROCESS_QUERY: Final = ("gpu_bus_id", "pid", "process_name", "used_gpu_memory")
"""Fields for `nvidia-smi --query-compute-apps=… --format=csv,noheader,nounits`."""


def read_nvidia(text: str, processes: str = "") -> Report:
    """The lists that the two queries ask for, in any order of rows. Raises Unreadable."""
    cards: list[Card] = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) < len(NVIDIA_QUERY) or not row[0].isdecimal():
            raise Unreadable(f"not a row of nvidia-smi: {', '.join(row)[:120]!r}")
        index, name, bus_id, temperature, utilisation, used, total, power = _with_commas(row, NVIDIA_QUERY, "name")
        cards.append(
            Card(
                index=int(index),
                name=name,
                health=Health.UNKNOWN,
                bus_id=bus_id or None,
                temperature_c=_number(temperature),
                utilisation_percent=_number(utilisation),
                memory_used_mb=_count(used),
                memory_total_mb=_count(total),
                power_w=_number(power),
            )
        )
    index_of = {card.bus_id: card.index for card in cards}
    found = [_nvidia_process(row, index_of) for row in csv.reader(processes.splitlines(), skipinitialspace=True) if row]
    return Report(None, tuple(sorted(cards, key=lambda card: card.index)), tuple(found))


def _nvidia_process(row: list[str], index_of: Mapping[str | None, int]) -> CardProcess:
    if len(row) < len(NVIDIA_PROCESS_QUERY) or row[0] not in index_of or not row[1].isdecimal():
        raise Unreadable(f"not a row of nvidia-smi's processes: {', '.join(row)[:120]!r}")
    bus_id, pid, name, memory = _with_commas(row, NVIDIA_PROCESS_QUERY, "process_name")
    return CardProcess(index_of[bus_id], int(pid), None, name, _count(memory))


def _with_commas(row: list[str], fields: Sequence[str], name: str) -> list[str]:
    """nvidia-smi does not quote: what is too much are the pieces of a name."""
    at, num_more = fields.index(name), len(row) - len(fields)
    return [*row[:at], ", ".join(row[at : at + num_more + 1]), *row[at + num_more + 1 :]]


def read_ascend(text: str) -> Report:
    """`npu-smi info`. Two rows a chip, then a table of processes.

    Forms seen: one chip a card (910B); two chips with a `Phy-ID` column, power told once (A3); a `Device` column and no HBM (310);
    `NPU ID` with cells of its own (A5); a last column with the process id in the container. Where a column numbers the devices, that
    is the index; else it is the order of the rows. Figures of a chip that cannot be read leave it unread, and the others known.
    Raises Unreadable where it is not plain which chips there are, or who is on them.
    """
    rows = [cells for line in text.splitlines() if len(cells := _cells(line)) > 1]
    version = re.search(r"Version:\s*(\S+)", text)
    start = next((number for number, cells in enumerate(rows) if _is_process_header(cells)), len(rows))
    chips = list(_chips(rows[:start]))
    cards = tuple(sorted((chip.card for chip in chips), key=lambda card: card.index))
    if len({card.index for card in cards}) != len(cards):
        raise Unreadable("npu-smi numbers two chips alike")
    if cards and all(card.unread is not None for card in cards):
        raise Unreadable(f"npu-smi does not say how any card is: {cards[0].unread!r}")
    index_of = {chip.place: chip.card.index for chip in chips}
    return Report(version[1] if version else None, cards, tuple(_processes(rows[start:], index_of)))


@dataclass(frozen=True)
class _Chip:
    """A card and where npu-smi's process table finds it: NPU number and chip number."""

    place: tuple[int, int]
    card: Card


MAX_QUOTE: Final = 160
_CARD_ROW: Final = re.compile(r"(\d+)\s+(\S.*)")
_CHIP_ROW: Final = re.compile(r"(\d+)(?:\s+(\d+))?")
_AMOUNT: Final = r"(\d+|NA|-)\s*/\s*(\d+|NA|-)"
_READINGS: Final = re.compile(rf"(\S+)\s+(\S+)\s+{_AMOUNT}")
_MEMORY: Final = re.compile(rf"(\S+)\s+{_AMOUNT}(?:\s+{_AMOUNT})?")


def _chips(rows: list[list[str]]) -> Iterator[_Chip]:
    above: list[str] | None = None
    order = 0
    for cells in (_three(cells) for cells in rows):
        if cells is None or "Health" in cells or "Bus-Id" in cells:
            continue
        if above is None:
            above = cells
            continue
        yield _chip(above, cells, order=order)
        above, order = None, order + 1
    if above is not None:
        raise Unreadable(f"npu-smi ends after the first row of a chip: {above!r}")


def _three(cells: list[str]) -> list[str] | None:
    """Number and name, health or bus, figures. A5 puts number and name into cells of their own."""
    if len(cells) == 4:
        return [f"{cells[0]} {cells[1]}".strip(), *cells[2:]]
    return cells if len(cells) == 3 else None


def _chip(above: list[str], below: list[str], *, order: int) -> _Chip:
    named, numbered = _CARD_ROW.fullmatch(above[0]), _CHIP_ROW.fullmatch(below[0] or "0")
    if not (named and numbered):
        raise Unreadable(f"not a chip's two rows of npu-smi: {above!r}, {below!r}")
    measured, memory = _READINGS.fullmatch(above[2]), _MEMORY.fullmatch(below[2])
    used, total = _memory(memory)
    health = _health(above[1])
    is_told = measured and memory and (health is not Health.UNKNOWN or used is not None)
    card = Card(
        index=int(numbered[2]) if numbered[2] else order,
        name=named[2],
        health=health,
        bus_id=None if below[1] in ("", "NA") else below[1],
        temperature_c=_number(measured[2]) if measured else None,
        utilisation_percent=_number(memory[1]) if memory else None,
        memory_used_mb=used,
        memory_total_mb=total,
        power_w=_number(measured[1]) if measured else None,
        unread=None if is_told else " | ".join([*above, *below])[:MAX_QUOTE],
    )
    return _Chip((int(named[1]), int(numbered[1])), card)


def _memory(found: re.Match[str] | None) -> tuple[int | None, int | None]:
    """Used and in all: of the second pair, which is HBM, where there is one."""
    if found is None:
        return None, None
    used, total = (found[4], found[5]) if found[4] else (found[2], found[3])
    return _count(used), _count(total)


def _processes(rows: list[list[str]], index_of: dict[tuple[int, int], int]) -> Iterator[CardProcess]:
    in_container = False
    for cells in rows:
        if _is_process_header(cells):
            in_container = "container" in cells[-1]
            continue
        place = [int(number) for number in cells[0].split() if number.isdecimal()]
        after_name = 2 if in_container else 1
        if not 1 <= len(place) <= 2 or len(cells) < 3 + after_name or not cells[1].isdecimal():
            raise Unreadable(f"not a row of npu-smi's processes: {cells!r}")
        index = index_of.get((place[0], place[1] if len(place) == 2 else 0))
        if index is None:
            raise Unreadable(f"npu-smi tells of a process on a card it does not list: {cells!r}")
        name, (memory, *rest) = "|".join(cells[2:-after_name]), cells[-after_name:]
        yield CardProcess(index, int(cells[1]), _count(rest[0]) if rest else None, name, _count(memory))


def _is_process_header(cells: list[str]) -> bool:
    return any(cell.startswith("Process id") for cell in cells)


def _cells(line: str) -> list[str]:
    stripped = line.strip()
    return [cell.strip() for cell in stripped.strip("|").split("|")] if stripped.startswith("|") else []


def _health(word: str) -> Health:
    try:
        return Health(word.lower())
    except ValueError:
        return Health.UNKNOWN


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _count(word: str) -> int | None:
    return int(word) if word.isdecimal() else None
