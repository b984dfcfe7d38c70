"""`python -m worker.devices.simulator`: a stand-in for `npu-smi info` on a simulated host; prints the recorded form of its table.

Its cards are idle but for the ranks of this host that run as CPU processes, which stand in its process table with the memory they
really take. A state file makes a card sick or busy; docs/hosts.md says how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linux import proc

HOST_VARIABLE: Final = "LONGYARD_SIMULATED_HOST"
"""In the environment of a rank that stands on simulated cards: whose they are."""

VERSION: Final = "simulated"
IDLE_MB: Final = 3072
TOTAL_MB: Final = 65536
IDLE_C: Final = 38
HANG_S: Final = 60.0

_RULE: Final = "+" + "=" * 27 + "+" + "=" * 15 + "+" + "=" * 52 + "+"


@dataclass(frozen=True)
class Tenant:
    """A process on a card."""

    card: int
    pid: int
    name: str
    memory_mb: int
    busy_percent: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["info"])
    parser.add_argument("--cards", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--state", type=Path, required=True)
    asked = parser.parse_args()
    state = _state(asked.state)
    if "fault" in state:
        _fail(str(state["fault"]))
    tenants = [*_ranks(asked.host), *_given(state)]
    sys.stdout.write(table(asked.cards, tenants, state.get("cards", {})))


def table(num_cards: int, tenants: list[Tenant], changes: Mapping[str, Mapping[str, Any]]) -> str:
    """As npu-smi prints it for cards of one chip."""
    lines = [
        f"| npu-smi {VERSION:<24} Version: {VERSION:<53}|",
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        _RULE,
    ]
    for card in range(num_cards):
        here = [one for one in tenants if one.card == card]
        busy = min(100, round(sum(one.busy_percent for one in here)))
        used_mb = IDLE_MB + sum(one.memory_mb for one in here)
        known: dict[str, Any] = {"health": "OK", "temperature_c": IDLE_C + busy // 4, "memory_mb": used_mb}
        known |= changes.get(str(card), {})
        name, bus, power = "simulated 910B", f"0000:{0xC0 + card:02X}:00.0", 90 + busy
        above = f"{power:<11} {known['temperature_c']:<17} 0    / 0             "
        below = f"{busy:<11} 0    / 0          {known['memory_mb']:<5} / {TOTAL_MB:<13}"
        lines += [
            f"| {card:<5} {name:<20}| {known['health']:<14}| {above}|",
            f"| 0{'':<25}| {bus:<14}| {below}|",
            _RULE,
        ]
    lines.append("| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |")
    lines += [f"| {one.card:<7} 0 | {one.pid:<14}| {one.name:<25}| {one.memory_mb:<24}|" for one in tenants]
    return "\n".join(lines) + "\n"


def _ranks(host: str) -> Iterator[Tenant]:
    """This host's ranks, each on the card that its number and ASCEND_RT_VISIBLE_DEVICES give it."""
    for pid in proc.with_variable(HOST_VARIABLE, host):
        visible = proc.variable_of(pid, "ASCEND_RT_VISIBLE_DEVICES")
        number = proc.variable_of(pid, "LOCAL_RANK")
        if not visible or not number:
            continue
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
        except (OSError, IndexError):
            continue
        memory_mb = pages * os.sysconf("SC_PAGE_SIZE") >> 20
        # A zombie has none, and is not on the card any more.
        if pages:
            yield Tenant(int(visible.split(",")[int(number)]), pid, "rank", memory_mb, _busy_percent(stat))


def _busy_percent(stat: str) -> float:
    """Of the time since the process began, as ps has it."""
    fields = stat[stat.rindex(")") + 2 :].split()
    ticks = os.sysconf("SC_CLK_TCK")
    used_s, began_s = (int(fields[11]) + int(fields[12])) / ticks, int(fields[19]) / ticks
    return 100 * used_s / max(0.1, proc.boottime() - began_s)


def _given(state: Mapping[str, Any]) -> Iterator[Tenant]:
    for one in state.get("processes", []):
        yield Tenant(int(one["card"]), int(one["pid"]), str(one["name"]), int(one["memory_mb"]))


def _state(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}


def _fail(how: str) -> None:
    if how == "hang":
        time.sleep(HANG_S)
    if how == "garbage":
        print("| 0     simulated 910B      | OK            | half a table")  # noqa: T201  # its answer
        sys.exit(0)
    sys.exit("dcmi module initialize failed. ret is -8005")


if __name__ == "__main__":
    main()
