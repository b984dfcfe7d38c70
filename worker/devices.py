"""Owns what this host advertises: LONGYARD_DEVICES, or what nvidia-smi or npu-smi shows, and the versions that people ask for."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from store.settings import Settings

DEFAULT_CPU_SLOTS: Final = 2
ASK_TIMEOUT_S: Final = 20.0
PACKAGES: Final = ("longyard", "torch", "torch_npu", "transformers")
CANN_VERSION_FILES: Final = (
    Path("/usr/local/Ascend/ascend-toolkit/latest/version.cfg"),
    Path("/usr/local/Ascend/ascend-toolkit/latest/runtime/version.info"),
)


@dataclass(frozen=True)
class Inventory:
    """This host's devices, indexed as the runtime does. `simulated`: NPUs that are CPU processes."""

    device_type: str
    names: tuple[str, ...]
    versions: dict[str, str]
    simulated: bool = False

    @property
    def cpu_threads(self) -> int:
        """A rank's share of the cores this process may use."""
        return max(1, len(os.sched_getaffinity(0)) // max(1, len(self.names)))


def survey(settings: Settings) -> Inventory:
    """What the setting says, or what is found; starts the vendors' tools at most once each."""
    wanted, _, count = settings.devices.partition(":")
    if wanted == "cpu":
        return _cpu(int(count))
    if wanted == "npu-sim":
        return Inventory(
            "npu", tuple(f"simulated NPU {index}" for index in range(int(count))), _versions(), simulated=True
        )
    cuda = _nvidia() if wanted in ("auto", "cuda") else ()
    npu = _ascend() if wanted == "npu" or (wanted == "auto" and not cuda) else ()
    if wanted == "auto":
        if cuda:
            return Inventory("cuda", cuda, _versions())
        return Inventory("npu", npu, _versions()) if npu else _cpu(DEFAULT_CPU_SLOTS)
    found = cuda or npu
    names = (*found[: int(count)], *(f"{wanted.upper()} {index}" for index in range(len(found), int(count))))
    return Inventory(wanted, names, _versions())


def parse_nvidia(text: str) -> tuple[str, ...]:
    """Names from `nvidia-smi --query-gpu=index,name --format=csv,noheader`, by index."""
    rows = [line.split(",", 1) for line in text.splitlines() if "," in line]
    return tuple(name.strip() for _, name in sorted(rows, key=lambda row: int(row[0])))


def parse_ascend(text: str) -> tuple[str, ...]:
    """Names from `npu-smi info`: a row of a card (number, name | health | power …), then one for each of its chips (number | bus | …).

    Where a second card row follows another chip's, the card has two: each is a device of its own.
    """
    names: list[str] = []
    card = ""
    for line in text.partition("Process id")[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 3:
            continue
        if match := re.fullmatch(r"\d+\s+(\S*[A-Za-z]\S*(?: \S+)*)", cells[0]):
            card = match[1]
        elif card and re.fullmatch(r"\d+(\s+\d+)?", cells[0]) and re.search(r"[0-9A-Fa-f]+:[0-9A-Fa-f]+:|NA", cells[1]):
            names.append(card)
    return tuple(names)


def _cpu(count: int) -> Inventory:
    return Inventory("cpu", tuple(f"CPU slot {index}" for index in range(count)), _versions())


def _nvidia() -> tuple[str, ...]:
    answer = _ask(["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"])
    return parse_nvidia(answer) if answer else ()


def _ascend() -> tuple[str, ...]:
    answer = _ask(["npu-smi", "info"])
    return parse_ascend(answer) if answer else ()


def _ask(argv: Sequence[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for path in CANN_VERSION_FILES:
        if path.is_file() and (
            match := re.search(r"(?i)version\s*=\s*\[?([\d.A-Za-z]+)", path.read_text("utf-8", "replace"))
        ):
            found["cann"] = match[1]
            break
    return found
