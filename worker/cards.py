"""Owns what a vendor's tool says of this host's cards: the words, and the reading of `npu-smi info` and of nvidia-smi's list.

A card here is one device as the runtime indexes it: a chip of an NPU, or a GPU.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
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
    """What is known of one device; None where the tool does not say. Memory is HBM where the card has any."""

    index: int
    name: str
    health: Health
    bus_id: str | None
    temperature_c: float | None
    utilisation_percent: float | None
    memory_used_mb: int | None
    memory_total_mb: int | None
    power_w: float | None


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
        if len(row) != len(NVIDIA_QUERY) or not row[0].isdecimal():
            raise Unreadable(f"not a row of nvidia-smi: {', '.join(row)[:120]!r}")
        index, name, bus_id, temperature, utilisation, used, total, power = row
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
    if len(row) != len(NVIDIA_PROCESS_QUERY) or row[0] not in index_of or not row[1].isdecimal():
        raise Unreadable(f"not a row of nvidia-smi's processes: {', '.join(row)[:120]!r}")
    return CardProcess(index_of[row[0]], int(row[1]), None, row[2], _count(row[3]))


def read_ascend(text: str) -> Report:
    """`npu-smi info`. Two rows a chip, then a table of processes.

    Forms seen: one chip a card (910B); two chips with a `Phy-ID` column, power told once (A3); a `Device` column and no HBM (310);
    `NPU ID` with cells of its own (A5); a last column with the process id in the container. Where a column numbers the devices, that
    is the index; else it is the order of the rows. Raises Unreadable.
    """
    rows = [cells for line in text.splitlines() if len(cells := _cells(line)) > 1]
    version = re.search(r"Version:\s*(\S+)", text)
    start = next((number for number, cells in enumerate(rows) if _is_process_header(cells)), len(rows))
    chips = list(_chips(rows[:start]))
    cards = tuple(sorted((chip.card for chip in chips), key=lambda card: card.index))
    if len({card.index for card in cards}) != len(cards):
        raise Unreadable("npu-smi numbers two chips alike")
    index_of = {chip.place: chip.card.index for chip in chips}
    return Report(version[1] if version else None, cards, tuple(_processes(rows[start:], index_of)))


@dataclass(frozen=True)
class _Chip:
    """A card and where npu-smi's process table finds it: NPU number and chip number."""

    place: tuple[int, int]
    card: Card


_CARD_ROW: Final = re.compile(r"(\d+)\s+(\S.*)")
_CHIP_ROW: Final = re.compile(r"(\d+)(?:\s+(\d+))?")
_READINGS: Final = re.compile(r"(\S+)\s+(\S+)\s+\d+\s*/\s*\d+")
_MEMORY: Final = re.compile(r"(\S+)\s+(\d+)\s*/\s*(\d+)(?:\s+(\d+)\s*/\s*(\d+))?")


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
    named, measured = _CARD_ROW.fullmatch(above[0]), _READINGS.fullmatch(above[2])
    numbered, memory = _CHIP_ROW.fullmatch(below[0] or "0"), _MEMORY.fullmatch(below[2])
    if not (named and measured and numbered and memory):
        raise Unreadable(f"not a chip's two rows of npu-smi: {above!r}, {below!r}")
    npu, chip = int(named[1]), int(numbered[1])
    used, total = (memory[4], memory[5]) if memory[4] else (memory[2], memory[3])
    return _Chip(
        (npu, chip),
        Card(
            index=int(numbered[2]) if numbered[2] else order,
            name=named[2],
            health=_health(above[1]),
            bus_id=None if below[1] in ("", "NA") else below[1],
            temperature_c=_number(measured[2]),
            utilisation_percent=_number(memory[1]),
            memory_used_mb=int(used),
            memory_total_mb=int(total),
            power_w=_number(measured[1]),
        ),
    )


def _processes(rows: list[list[str]], index_of: dict[tuple[int, int], int]) -> Iterator[CardProcess]:
    in_container = False
    for cells in rows:
        if _is_process_header(cells):
            in_container = "container" in cells[-1]
            continue
        place = [int(number) for number in cells[0].split() if number.isdecimal()]
        if not 1 <= len(place) <= 2 or not 4 <= len(cells) <= 5 or not cells[1].isdecimal():
            raise Unreadable(f"not a row of npu-smi's processes: {cells!r}")
        index = index_of.get((place[0], place[1] if len(place) == 2 else 0))
        if index is None:
            raise Unreadable(f"npu-smi tells of a process on a card it does not list: {cells!r}")
        yield CardProcess(index, int(cells[1]), _count(cells[4]) if in_container else None, cells[2], _count(cells[3]))


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
