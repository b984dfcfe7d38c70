"""Owns the checks of this host's cards: that they are known, well, clean while nobody holds them, and counted as the runtime counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

from worker.devices.health import Fitness
from worker.devices.report import USABLE, Card, Health
from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level

VISIBLE: Final[Mapping[str, str]] = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
TOOL: Final[Mapping[str, str]] = {"npu": "npu-smi", "cuda": "nvidia-smi"}


def check_known(site: Site) -> Iterator[Finding]:
    if site.refusal is not None:
        why = "a worker that cannot see its cards does not start, since it would offer something else in their place"
        fix = "run npu-smi info, or nvidia-smi, by hand and mend what it says; or set LONGYARD_DEVICES=cpu:2 to use the processor"
        yield Finding("cards", Level.FAILURE, site.refusal, why, fix, dooms_jobs=True)


def check_health(site: Site) -> Iterator[Finding]:
    for index, card in enumerate(site.report.cards[: site.num_devices] if site.report else ()):
        tool = TOOL[site.device_type]
        is_broken = card.health not in USABLE
        if card.unread is not None and not is_broken:
            yield _unread(tool, index, card)
        if card.health in (Health.OK, Health.UNKNOWN):
            continue
        yield Finding(
            "cards",
            Level.FAILURE if is_broken else Level.WARNING,
            f"{tool} says the health of card {index} ({card.name}) is {card.health.upper()}",
            "it is given no job until that is over" if is_broken else "it is given jobs still",
            f"npu-smi info -t health -i {index}"
            if site.device_type == "npu"
            else "nvidia-smi -q -d ECC,PAGE_RETIREMENT",
            dooms_jobs=is_broken,
            devices=(index,),
        )


def check_clean(site: Site) -> Iterator[Finding]:
    """Free memory and nobody on it, where no job of ours holds the card."""
    if site.report is None:
        return
    tool = TOOL[site.device_type]
    for reading in Fitness(site.device_type, tool).read(site.report)[: site.num_devices]:
        if reading.residue is not None and reading.index not in site.held:
            yield Finding(
                "cards",
                Level.FAILURE,
                f"card {reading.index}: {reading.residue}",
                "a job there would share its memory, so it is given none until it is clean",
                "end the process, once you know whose it is: ps -fp PID, kill PID; memory that nobody holds needs a reset of the card",
                dooms_jobs=True,
                devices=(reading.index,),
            )


def check_order(site: Site) -> Iterator[Finding]:
    """Device 0 of the runtime is the first card the tool lists; who counts otherwise looks at the wrong one."""
    numbers = [card.index for card in site.report.cards[: site.num_devices]] if site.report else []
    if numbers != list(range(len(numbers))):
        listed = ", ".join(map(str, numbers))
        yield Finding(
            "device order",
            Level.WARNING,
            f"{TOOL[site.device_type]} numbers the cards {listed}; here they are 0 to {len(numbers) - 1} in that order",
            "the card of a job or a message is not the one with that number in the tool",
            "count from the top of the tool's list",
        )
    name = VISIBLE.get(site.device_type)
    given = site.environ.get(name) if name else None
    if given is not None and not site.is_simulated:
        is_ascending = _ascends(given)
        yield Finding(
            "device order",
            Level.WARNING,
            f"{name}={given} is set where the worker starts",
            "it is replaced for each job, so it hides no card"
            + ("" if is_ascending else "; and a list that does not strictly ascend makes torch_npu see no card at all"),
            f"unset {name}; to offer fewer cards: LONGYARD_DEVICES={site.device_type}:N",
        )


def _unread(tool: str, index: int, card: Card) -> Finding:
    return Finding(
        "cards",
        Level.FAILURE,
        f"{tool} does not say how card {index} ({card.name}) is: {card.unread}",
        "nobody can say that it is well, so it is given no job",
        f"run {tool} by hand; where the card is well, its form is one that Longyard does not know: report it",
        dooms_jobs=True,
        devices=(index,),
    )


def _ascends(given: str) -> bool:
    parts = given.split(",")
    return all(part.isdecimal() for part in parts) and all(int(a) < int(b) for a, b in pairwise(parts))
