"""Owns the rounds in which a worker repeats the doctor's slow checks; what they found is left for the launches after them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from store.db import Database
from store.settings import Settings
from worker.devices.inventory import Inventory
from worker.doctor import preflight, runner
from worker.doctor.findings import Finding
from worker.doctor.inputs import Known
from worker.doctor.preflight import Notes

MAX_KNOWN: Final = 1000

log = logging.getLogger(__name__)


class Checkup:
    """Of one worker, in a thread of their own. What was found of files that have not changed is not looked at again."""

    def __init__(self, settings: Settings, database: Database, inventory: Inventory) -> None:
        self._settings, self._database, self._inventory = settings, database, inventory
        self._known = Known()

    def run(self) -> Sequence[Finding]:
        """One round; its notes are in the file when it answers."""
        site = runner.site_of(self._settings, self._inventory)
        found: list[Finding] = []
        try:
            found += runner.check_inputs(self._settings, self._database, self._known)
        except SQLAlchemyError:
            log.warning("the database is away: the inputs of waiting jobs were not looked at")
        found += runner.examine(site, runner.OF_HOST)
        if len(self._known.found) > MAX_KNOWN:
            self._known = Known()
        preflight.leave(self._settings, Notes(found, self._known.found))
        for one in found:
            if one.dooms_jobs:
                log.error("%s", one.sentence)
        return found
