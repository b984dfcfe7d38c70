"""Owns what the host loop does about the health of its host: cards and findings are looked at in threads, their rows written here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from linux import proc
from store import device_health
from store.db import Database
from store.device_health import Reading
from store.settings import Settings
from worker.agent.checkup import Checkup
from worker.agent.errand import Errand
from worker.devices import health
from worker.devices.health import Fitness
from worker.devices.inventory import Inventory
from worker.devices.report import Report
from worker.devices.vendor_tool import Silent, Tool
from worker.doctor import preflight
from worker.doctor.findings import Finding

log = logging.getLogger(__name__)

PATIENCE: Final = 2
"""So many times in a row the tool may be silent before its cards are held to be sick: a busy host is slow to answer."""


@dataclass(frozen=True)
class Look:
    """What a look at the cards that began at this boot time has shown."""

    began: float
    readings: Sequence[Reading]


class Turned(NamedTuple):
    """Whether rows were written, and whether that changes what may be placed here."""

    is_written: bool
    is_news: bool


class Health:
    """Lives in the main thread of a worker; `tell` wakes it. Call `turn` at every turn of the host loop, once the host is registered."""

    def __init__(
        self, settings: Settings, database: Database, inventory: Inventory, *, tell: Callable[[], None]
    ) -> None:
        self._settings, self._database = settings, database
        self._readings: Sequence[Reading] = [Reading(index) for index in range(len(inventory.names))]
        self._cards: Errand[Look] | None = None
        if inventory.tool is not None and inventory.report is not None:
            looker = _Looker(inventory.tool, inventory.report, inventory)
            self._readings = looker.read(inventory.report)
            self._cards = Errand("cards", looker.look, every_s=settings.cards_s, tell=tell)
        checkup = Checkup(settings, database, inventory)
        self._checkup = Errand("checkup", checkup.run, every_s=settings.checkup_s, tell=tell)
        self._findings: Sequence[Finding] = ()
        self._written: Sequence[Reading] | None = None
        self._noticed: dict[int, float] = {}

    def start(self) -> None:
        for errand in (self._cards, self._checkup):
            if errand is not None:
                errand.start()

    def turn(self) -> Turned:
        """Write what is new. Raises SQLAlchemyError; then it is tried again."""
        self._notice_unseen()
        look = None if self._cards is None else self._cards.take()
        found = self._checkup.take()
        self._readings = self._readings if look is None else look.readings
        self._findings = self._findings if found is None else found
        readings = [self._with_findings(one) for one in self._readings]
        if readings == self._written and not (look and self._noticed):
            return Turned(is_written=False, is_news=False)
        self._written = None
        seen = {index for index, at in self._noticed.items() if look is not None and at <= look.began}
        with self._database.write() as session:
            is_news = device_health.observe(session, self._settings.host_name, readings, seen=seen)
        self._written = readings
        return Turned(is_written=True, is_news=is_news)

    def _notice_unseen(self) -> None:
        """A card that was freed a moment ago is looked at now, by a look that begins after we know."""
        if self._cards is None:
            return
        with self._database.read() as session:
            waiting = device_health.unseen(session, self._settings.host_name)
        now = proc.boottime()
        news = set(waiting) - self._noticed.keys()
        self._noticed = {index: self._noticed.get(index, now) for index in waiting}
        if news:
            self._cards.hurry()

    def _with_findings(self, reading: Reading) -> Reading:
        words = preflight.doom_of(self._findings, devices=[reading.index])
        return reading if words is None or reading.ailment else replace(reading, ailment=words)


class _Looker:
    """Asks the tool, in the errand's thread."""

    def __init__(self, tool: Tool, first: Report, inventory: Inventory) -> None:
        self._tool, self._num_devices = tool, len(inventory.names)
        self._fitness = Fitness(inventory.device_type, tool.name)
        self._num_cards = len(first.cards)
        self._num_silent = 0

    def read(self, report: Report) -> Sequence[Reading]:
        return self._fitness.read(report)[: self._num_devices]

    def look(self) -> Look | None:
        began = proc.boottime()
        try:
            report = self._tool.ask()
            if len(report.cards) != self._num_cards:
                raise Silent(f"{self._tool.name} lists {len(report.cards)} cards and listed {self._num_cards} before")
        except Silent as error:
            log.warning("%s", error)
            self._num_silent += 1
            return (
                Look(began, health.unanswered(self._num_devices, str(error))) if self._num_silent >= PATIENCE else None
            )
        self._num_silent = 0
        return Look(began, self.read(report))
