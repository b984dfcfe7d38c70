"""What a run of the loop has shown, in Markdown."""

from __future__ import annotations

from statistics import median

from tests.faults.loop import Done, Loop
from tests.faults.menu import MENU


def lines(loop: Loop | None, *, seed: int, minutes: float, database: str, problem: str | None) -> list[str]:
    done = loop.done if loop else []
    rounds = max((one.round for one in done), default=0)
    verdict = "every check passed" if problem is None else "a check failed"
    how = f"`./run faults --seed {seed} --minutes {minutes:.0f} --database {database}`: timings at 1/20 of the defaults"
    head = [
        f"# {len(done)} faults in {minutes:.0f} minutes: {verdict}",
        "",
        f"{how}, two hosts of four devices, {rounds} rounds; after each, K1 to K6 of all its jobs.",
        "",
    ]
    if problem is not None:
        head += [f"It ended with: {problem}", ""]
    if loop is not None:
        ends = ", ".join(f"{count} {status}" for status, count in sorted(loop.ends.items()))
        head += [f"Jobs: {ends or 'none ended'}. {loop.num_missed} faults found nothing to strike.", ""]
    return [*head, *_table(done)]


def _table(done: list[Done]) -> list[str]:
    """Times are from the end of a round's last fault to the end of its last job, process and device."""
    rows = ["| fault | what | times | converged in, median | slowest |", "| --- | --- | ---: | ---: | ---: |"]
    for name, fault in MENU.items():
        times = [one.converged_s for one in done if one.name == name]
        if times:
            rows.append(
                f"| {fault.number} | {name.replace('_', ' ')} | {len(times)} | {median(times):.1f} s | {max(times):.1f} s |"
            )
    return rows
