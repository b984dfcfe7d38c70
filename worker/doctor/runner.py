"""`python -m worker.doctor [--json]`: what is wrong on this host, why it matters and what mends it. Exit code 1 where a job would fail.

Each check is a function of a Site that yields findings; none of them imports torch, starts a rank or changes anything.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from store import hosts, jobs
from store.db import Database, now
from store.errors import BadSettings
from store.settings import Settings, load
from store.states import JobStatus
from worker.devices import toolchain
from worker.devices.inventory import Inventory, NoDevices
from worker.devices.inventory import survey as inventory_of
from worker.doctor import devices, libraries, system
from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level
from worker.doctor.inputs import Known

WITHIN_S: Final = 9.5
"""The whole of it, whatever does not answer: the cards' tools take so much of that at most, the database so much."""
ASK_WITHIN_S: Final = 5.0
DATABASE_WITHIN_S: Final = 2.5
BUSY_TIMEOUT_S: Final = 2.0
MAX_JOBS: Final = 20

T = TypeVar("T")
Check = Callable[[Site], Iterator[Finding]]

OF_HOST: Final[Sequence[Check]] = (
    toolchain.check_torch,
    toolchain.check_cann,
    toolchain.check_driver,
    libraries.check_libgomp,
    libraries.check_libblas,
    devices.check_order,
    system.check_trainer,
    system.check_ports,
    system.check_shared_memory,
    system.check_open_files,
    system.check_disk,
    system.check_clock,
    system.check_data_roots,
)
"""What a worker repeats every minute too; of its cards it knows more than these could tell it."""

OF_CARDS: Final[Sequence[Check]] = (devices.check_known, devices.check_health, devices.check_clean)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """All that was found, and how long it took."""

    site: Site
    findings: Sequence[Finding]
    took_s: float

    @property
    def exit_code(self) -> int:
        return int(any(one.level is Level.FAILURE for one in self.findings))


def main() -> None:
    parser = argparse.ArgumentParser(prog="longyard doctor")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    try:
        settings = load()
    except BadSettings as error:
        sys.exit(str(error))
    done = diagnose(settings)
    sys.stdout.write(as_json(done) if asked.json else as_text(done))
    sys.exit(done.exit_code)


def diagnose(settings: Settings) -> Examination:
    """Everything, as it is now; within ten seconds, whatever does not answer."""
    began = time.monotonic()
    site = survey(settings)
    try:
        site, findings = _within(DATABASE_WITHIN_S, lambda: _with_database(site))
    except TimeoutError:
        findings = [
            _of_database(
                f"the database, or a file that waiting jobs name, gave no answer within {DATABASE_WITHIN_S:g} s"
            )
        ]
    for check in (*OF_CARDS, *OF_HOST):
        # One that hangs leaves something for those after it.
        patience_s = max(0.1, (began + WITHIN_S - time.monotonic()) / 2)
        try:
            findings += _within(patience_s, lambda check=check: examine(site, [check]))
        except TimeoutError:
            findings.append(_blind(check, f"gave no answer within {patience_s:.1f} s"))
    return Examination(site, sorted(findings, key=lambda one: one.level), time.monotonic() - began)


def survey(settings: Settings) -> Site:
    try:
        inventory = inventory_of(settings, within_s=ASK_WITHIN_S)
    except NoDevices as error:
        return replace(site_of(settings, None), refusal=str(error))
    return site_of(settings, inventory)


def site_of(settings: Settings, inventory: Inventory | None) -> Site:
    """This machine; None where it is not known which devices it has."""
    return Site(
        settings=settings,
        root=toolchain.ROOT,
        environ=os.environ,
        machine=platform.machine(),
        site_packages=Path(sysconfig.get_path("purelib")),
        packages=toolchain.packages(),
        device_type=inventory.device_type if inventory else "",
        num_devices=len(inventory.names) if inventory else 0,
        is_simulated=inventory.simulated if inventory else False,
        report=inventory.report if inventory else None,
    )


def examine(site: Site, checks: Sequence[Check]) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(site)
        except Exception as error:  # a check's edge: what it cannot look at says nothing about the others
            log.exception("%s could not look", check.__name__)
            found.append(_blind(check, f"could not look: {type(error).__name__}: {error}"))
    return found


def check_inputs(settings: Settings, database: Database, known: Known) -> list[Finding]:
    """The corpora and tokenizers of the jobs that wait. Raises SQLAlchemyError.

    Those of the newest jobs are looked at too, and only remembered: the next job is likely to name them.
    """
    with database.read() as session:
        waiting = jobs.page(session, status=JobStatus.QUEUED, limit=MAX_JOBS).rows
        newest = jobs.page(session, limit=MAX_JOBS).rows
    for job in newest:
        list(known.problems(settings, job.train))
    return [
        Finding(
            "inputs",
            Level.FAILURE,
            f"job {job.id}: {problem.sentence}",
            "it would get its devices and fail",
            f"correct the file, or cancel the job: longyard cancel {job.id}"
            if problem.is_users
            else "look at that disk or mount of this host",
        )
        for job in waiting
        for problem in known.problems(settings, job.train)
    ]


def clock_ahead_s(database: Database) -> float | None:
    """By how much this machine's clock is ahead of the database's, as of the middle of the question. Raises SQLAlchemyError."""
    asked_at = now()
    theirs = database.clock()
    return None if theirs is None else (asked_at + (now() - asked_at) / 2 - theirs).total_seconds()


def as_text(done: Examination) -> str:
    site = done.site
    kind = f"simulated {site.device_type}" if site.is_simulated else site.device_type or "unknown"
    lines = [f"{site.settings.host_name}: {site.num_devices} {kind} devices"]
    for index, card in enumerate(site.report.cards if site.report else ()):
        memory = f"{_known(card.memory_used_mb)} of {_known(card.memory_total_mb)} MB used"
        heat = "" if card.temperature_c is None else f", {card.temperature_c:g} °C"
        lines.append(f"  {index}  {card.name}  {card.health}, {memory}{heat}")
    lines += [f"  {name} {version}" for name, version in site.packages.items()]
    for one in done.findings:
        lines += ["", f"{one.level.upper()}  {one.check}: {one.what}", f"  why  {one.why}", f"  fix  {one.fix}"]
    numbers = {level: sum(one.level is level for one in done.findings) for level in Level}
    counts = [f"{number} {level}{'' if number == 1 else 's'}" for level, number in numbers.items()]
    return "\n".join([*lines, "", f"{', '.join(counts)}, in {done.took_s:.1f} s", ""])


def as_json(done: Examination) -> str:
    site = done.site
    cards = site.report.cards if site.report else ()
    answer = {
        "host": site.settings.host_name,
        "device_type": site.device_type or None,
        "simulated": site.is_simulated,
        "num_devices": site.num_devices,
        "versions": dict(site.packages),
        "cards": [asdict(card) for card in cards],
        "findings": [asdict(one) for one in done.findings],
        "took_s": round(done.took_s, 3),
    }
    return json.dumps(answer, indent=2) + "\n"


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Raises what it raises, and TimeoutError: then it goes on in a thread that ends with the process."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001  # handed over whole to who waits for it
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(seconds)


def _blind(check: Check, words: str) -> Finding:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    why = "what it looks for may be wrong here, and nobody has seen it"
    return Finding(
        name, Level.WARNING, f"this check {words}", why, "mend what it stumbled over and run longyard doctor again"
    )


def _of_database(what: str) -> Finding:
    why = "this host learns from it what to run, and keeps there what its jobs say"
    fix = "start it, correct LONGYARD_DATABASE_URL, or bring its schema up to date: python -m migrations upgrade"
    return Finding("database", Level.FAILURE, what, why, fix)


def _with_database(site: Site) -> tuple[Site, list[Finding]]:
    """What only the database knows: who holds the cards, its clock, what waits."""
    settings = site.settings
    if settings.is_local and not (settings.data_dir / "longyard.db").exists():
        # Nothing was ever started here, and asking would make the file.
        return site, []
    database = Database(settings.db_url, busy_timeout_s=BUSY_TIMEOUT_S)
    try:
        with database.read() as session:
            views = [view for view in hosts.all_hosts(session) if view.host.name == settings.host_name]
        held = frozenset(
            one.device.index for view in views for one in view.devices if one.device.attempt_id is not None
        )
        known = replace(site, held=held, clock_ahead_s=clock_ahead_s(database))
        return known, check_inputs(settings, database, Known())
    except SQLAlchemyError as error:
        words = str(error.__cause__ or error).splitlines()[0]
        return site, [_of_database(f"the database does not answer as it should: {words}")]
    finally:
        database.dispose()
