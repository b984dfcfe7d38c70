"""Owns what an Ascend host needs beside a card: a rank's environment, and what the toolkit's error codes mean. Never run on a card.

Codes, variables and defaults are those of the CANN and torch_npu documentation and of Ascend/mind-cluster's fault tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from store.states import ExitReason
from worker.devices import plog

FIRST_PORT: Final = 60_000
PORTS_A_DEVICE: Final = 16

CONNECT_TIMEOUT_S: Final = 300
"""How long ranks wait for each other at the first collective: longer than the 120 s of the default, since ranks that read a large
corpus or model arrive apart; a rank that died is seen by its exit and not by this."""

EXEC_TIMEOUT_S: Final = 1836
EVENT_TIMEOUT_S: Final = 1868
"""HCCL's own last resort, 27 × 68 s; the supervisor sees a hang by step progress, far sooner. The second must exceed the first."""

DEFAULTS: Final[Mapping[str, str]] = {
    "HCCL_CONNECT_TIMEOUT": str(CONNECT_TIMEOUT_S),
    "HCCL_EXEC_TIMEOUT": str(EXEC_TIMEOUT_S),
    "HCCL_EVENT_TIMEOUT": str(EVENT_TIMEOUT_S),
    "HCCL_WHITELIST_DISABLE": "1",
    "TASK_QUEUE_ENABLE": "2",
    "COMBINED_ENABLE": "1",
}
"""Of these the operator's own value, where the worker was started with one, goes first."""


def variables(inherited: Mapping[str, str], *, devices: Sequence[int], run_dir: Path) -> dict[str, str]:
    """What the ranks of one attempt see of Ascend: nothing is set on the host.

    Attempts that share a host hold different devices, so the lowest of them gives each a port range of its own.
    """
    # Not strictly ascending, and torch_npu silently sees no device at all.
    ascending = sorted(set(devices))
    low = FIRST_PORT + PORTS_A_DEVICE * ascending[0]
    ports = f"{low}-{low + PORTS_A_DEVICE - 1}"
    return {
        **{name: inherited.get(name, value) for name, value in DEFAULTS.items()},
        "ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, ascending)),
        "ASCEND_PROCESS_LOG_PATH": str(run_dir / plog.DIR),
        "HCCL_HOST_SOCKET_PORT_RANGE": ports,
        "HCCL_NPU_SOCKET_PORT_RANGE": ports,
    }


class Action(StrEnum):
    """What a fault asks of the card, from nothing to taking it out of service."""

    NONE = "none"
    RESET = "reset"
    """The card serves again once it is reset while nothing runs on it."""
    CORDON = "cordon"
    """The card gets no further work until a person has looked."""


@dataclass(frozen=True)
class Signature:
    """A code in a rank's words or log, and what it means in plain words."""

    pattern: re.Pattern[str]
    reason: ExitReason
    words: str
    action: Action = Action.NONE


def _code(pattern: str, reason: ExitReason, words: str, action: Action = Action.NONE) -> Signature:
    return Signature(re.compile(pattern), reason, words, action)


SIGNATURES: Final = (
    _code(
        r"0x80[Ee]01801",
        ExitReason.DEVICE_ERROR,
        "the card's memory has an error that cannot be corrected",
        Action.CORDON,
    ),
    _code(r"0x80[Ff][Aa]4[Ee]00", ExitReason.DEVICE_ERROR, "the card's heartbeat was lost", Action.CORDON),
    _code(r"0x80[Cc]9800[Aa]", ExitReason.DEVICE_ERROR, "an AI Core did not finish in time", Action.RESET),
    _code(
        r"NPU out of memory|\bEL0004\b|\bERR\d\d006\b",
        ExitReason.OUT_OF_MEMORY,
        "the card's memory is full: use a smaller per_device_train_batch_size or gradient_checkpointing",
    ),
    _code(r"\b(?:EZ9999|EZ9903|EH9999)\b", ExitReason.DEVICE_ERROR, "an operator failed on the card's AI Core"),
    _code(r"\bEJ0001\b", ExitReason.DEVICE_ERROR, "the card is held by another process"),
    _code(r"\bEE1001\b", ExitReason.DEVICE_ERROR, "the card could not be opened"),
    _code(
        r"\bEI0008\b", ExitReason.LAUNCH_ERROR, "the hosts of this job have different CANN versions: install the same"
    ),
    _code(
        r"\bEI000[34]\b",
        ExitReason.LAUNCH_ERROR,
        "the ranks were given a bad rank table: unset RANK_TABLE_FILE on the host",
    ),
    _code(r"\bEI0001\b", ExitReason.LAUNCH_ERROR, "an HCCL variable of the host has a value that HCCL refuses"),
    _code(r"\bEI0006\b", ExitReason.INFRA, "a rank did not come up in time, so the others could not reach it"),
    _code(r"\bEI0002\b", ExitReason.INFRA, "another rank failed first, and this one waited for it in vain"),
    _code(r"\bERR\d\d011\b", ExitReason.INFRA, "an operation on the card did not finish in time"),
    _code(r"\bERR\d\d100\b", ExitReason.DEVICE_ERROR, "the card's runtime (ACL) failed"),
    _code(r"\bERR\d\d200\b", ExitReason.INFRA, "the ranks could not exchange data (HCCL)"),
)
"""A cause goes before what follows from it: a broken card before an operator that failed on it, both before ranks that waited."""


def diagnose(text: str) -> Signature | None:
    """The first cause that the text names; None where it names none of ours."""
    return next((signature for signature in SIGNATURES if signature.pattern.search(text)), None)
