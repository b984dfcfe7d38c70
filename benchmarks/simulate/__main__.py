"""`./run simulate`: a trace of jobs on a made-up fleet in simulated time, through the plane's own planner and, beside it, first fit."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import report
from benchmarks.simulate import first_fit, simulator, traces
from benchmarks.simulate import metrics as figures
from benchmarks.simulate.metrics import Figures, Waits
from benchmarks.simulate.simulator import Outcome
from benchmarks.simulate.traces import TraceJob
from store.placement import planner

OURS, FIRST_FIT = "ours", "first fit"
PLANNERS: Final = {OURS: planner.plan, FIRST_FIT: first_fit.plan}
NUM_OWNERS_SHOWN: Final = 8


def main(argv: Sequence[str]) -> int:
    """0 where every job ran exactly once and no device was held twice; 1 where a replay was not sound; 2 for a trace that is none."""
    options = _parser().parse_args(argv)
    try:
        trace = _trace(options)
    except (traces.BadTrace, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.write_trace is not None:
        traces.write(trace, options.write_trace)
    if options.whole_passes:
        return _measure_whole(trace, options)
    outcomes: dict[str, Outcome] = {}
    took_s: dict[str, float] = {}
    try:
        for name in PLANNERS if options.only is None else [options.only.replace("-", " ")]:
            began_s = time.process_time()
            outcomes[name] = _replay(name, trace, options)
            took_s[name] = time.process_time() - began_s
    except simulator.Stuck as error:
        sys.stderr.write(f"{error}\n")
        return 1
    found = {name: figures.read_out(trace, one, num_devices=8 * options.hosts) for name, one in outcomes.items()}
    wrong = [f"{name}: {what}" for name, one in outcomes.items() for what in figures.check(trace, one)]
    _show(found, took_s, trace, options)
    if options.json is not None:
        options.json.write_text(json.dumps(_report(found, trace, options), indent=1) + "\n", "utf-8")
    if options.picture is not None:
        from benchmarks.simulate import chart

        chart.draw(trace, outcomes, found, options.picture, title=_about(trace, options))
    sys.stderr.writelines(f"not sound: {what}\n" for what in wrong[:20])
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run simulate", description=__doc__)
    parser.add_argument("--hosts", type=_positive, default=32, help="of eight NPUs each (default %(default)s)")
    parser.add_argument("--jobs", type=_positive, default=4000, help="of a made-up trace (default %(default)s)")
    parser.add_argument(
        "--load", type=_above_zero, default=0.95, help="device time asked for, over what there is (default %(default)s)"
    )
    parser.add_argument("--seed", type=_seed, default=1, help="of the made-up trace (default %(default)s)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="replay this CSV or JSON lines instead (docs/simulate.md)"
    )
    parser.add_argument("--write-trace", type=_output, metavar="FILE", help="keep the trace that was replayed")
    parser.add_argument(
        "--every",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="simulated seconds between passes, at least (default %(default)s)",
    )
    parser.add_argument("--quota", type=_positive, metavar="N", help="devices that each owner may hold at once")
    parser.add_argument(
        "--whole-passes",
        type=_positive,
        metavar="N",
        help="replay nothing: time so many passes with all jobs queued in a real database and all devices in use",
    )
    parser.add_argument("--only", choices=["ours", "first-fit"], help="one planner instead of both")
    parser.add_argument("--json", type=_output, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--picture", type=_picture, metavar="FILE.svg", help="draw them")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _seed(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("at least 0")
    return number


def _seconds(text: str) -> float:
    if not 0 <= (number := float(text)) < inf:
        raise argparse.ArgumentTypeError("seconds, at least 0")
    return number


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < inf:
        raise argparse.ArgumentTypeError("more than 0")
    return number


def _output(text: str) -> Path:
    """Looked at before a replay that takes minutes, not after."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def _picture(text: str) -> Path:
    path = _output(text)
    if path.suffix != ".svg":
        raise argparse.ArgumentTypeError(f"{path} has to end with .svg")
    return path


def _trace(options: argparse.Namespace) -> list[TraceJob]:
    if options.trace is not None:
        return traces.read(options.trace)
    return traces.synthetic(options.jobs, num_devices=8 * options.hosts, load=options.load, seed=options.seed)


def _replay(name: str, trace: Sequence[TraceJob], options: argparse.Namespace) -> Outcome:
    with tqdm(total=len(trace), desc=name, unit="job", disable=None) as bar:
        ended: Callable[[], object] = bar.update
        quotas = {"*": options.quota} if options.quota else {}
        hosts = simulator.fleet(options.hosts)
        return simulator.replay(trace, hosts, PLANNERS[name], every_s=options.every, quotas=quotas, on_end=ended)


def _measure_whole(trace: Sequence[TraceJob], options: argparse.Namespace) -> int:
    from benchmarks.simulate import pass_cost

    found = pass_cost.passes(trace, num_hosts=options.hosts, count=options.whole_passes)
    sys.stdout.write(f"{_about(trace, options)}, all in use; a pass with what it reads and writes, on SQLite:\n")
    sys.stdout.writelines(f"  {wall_s:.3f} s, of which {cpu_s:.3f} s of CPU\n" for wall_s, cpu_s in found)
    return 0


def _about(trace: Sequence[TraceJob], options: argparse.Namespace) -> str:
    source = options.trace.name if options.trace else f"made up, seed {options.seed}, load {options.load:g}"
    owners = len({job.owner for job in trace})
    return f"{len(trace):,} jobs of {owners} owners on {options.hosts:,} hosts × 8 ({source})"


def _report(found: dict[str, Figures], trace: Sequence[TraceJob], options: argparse.Namespace) -> dict[str, object]:
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    planners = {name: figures.as_json(one) for name, one in found.items()}
    return {"about": _about(trace, options), "options": asked, "machine": report.machine(), "planners": planners}


def _show(
    found: dict[str, Figures], took_s: dict[str, float], trace: Sequence[TraceJob], options: argparse.Namespace
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"[bold]{_about(trace, options)}[/bold]", highlight=False)
    for name, value in (report.machine() | {"longyard": version("longyard")}).items():
        console.print(f"  {name}: {value}", highlight=False)
    shown = Table("", *found, pad_edge=False)
    for title, tell in _ROWS:
        shown.add_row(title, *(tell(one) for one in found.values()))
    shown.add_section()
    shown.add_row("CPU of the whole replay", *(f"{took_s[name]:.0f} s" for name in found))
    console.print(shown, highlight=False)
    console.print(_wait_table(found), highlight=False)


def _wait_table(found: dict[str, Figures]) -> Table:
    shown = Table("waits: median · p95 · max", "jobs", *found, pad_edge=False)
    first = next(iter(found.values()))
    for size in first.by_size:
        shown.add_row(
            _devices(size), f"{first.by_size[size].num_jobs:,}", *(_waits(one.by_size[size]) for one in found.values())
        )
    shown.add_section()
    largest = sorted(first.by_owner, key=lambda owner: (-first.by_owner[owner].num_jobs, owner))
    for owner in largest[:NUM_OWNERS_SHOWN]:
        shown.add_row(
            owner, f"{first.by_owner[owner].num_jobs:,}", *(_waits(one.by_owner[owner]) for one in found.values())
        )
    if len(largest) > NUM_OWNERS_SHOWN:
        shown.add_row(f"and {len(largest) - NUM_OWNERS_SHOWN} owners more", "", *("" for _ in found))
    return shown


def _devices(count: int) -> str:
    return f"{count} device{'s' if count > 1 else ''}"


def _waits(waits: Waits) -> str:
    return " · ".join(duration(value) for value in (waits.median_s, waits.p95_s, waits.max_s))


def duration(seconds: float) -> str:
    """`42 s`, `17 min`, `3.5 h`, `2.1 d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


def _estimate(figures: Figures) -> str:
    one = figures.estimates
    if one is None:
        return "–"
    told = f"{one.num_told:,} told ({one.share_told:.0%} of who waited)"
    return f"{told} · error {duration(one.median_error_s)} (median) · {one.within_2x:.0%} within 2× ({one.kept_within_2x:.0%} of promises)"


def _times(factor: float | None) -> str:
    return "–" if factor is None else f"{factor:.2f}×"


def _promises(figures: Figures) -> str:
    one = figures.estimates
    return "–" if one is None else f"{one.num_promised:,} made · {one.late:.1%} late"


_ROWS: Final[Sequence[tuple[str, Callable[[Figures], str]]]] = (
    ("devices in use, first to last submission", lambda one: f"{one.utilisation:.1%}"),
    ("all done after", lambda one: duration(one.span_s)),
    ("waits: median · p95 · max", lambda one: _waits(one.waits)),
    ("slowdown, mean over jobs", lambda one: _times(one.mean_slowdown)),
    ("· of owners within an equal share of the devices", lambda one: _times(one.modest_slowdown)),
    ("· of those who asked for more", lambda one: _times(one.greedy_slowdown)),
    ("· the worst owner's mean", lambda one: _times(one.worst_owner_slowdown)),
    ("fairness: Jain's index of owners' slowdowns", lambda one: f"{one.jain_slowdown:.3f}"),
    ("stopped to make room", lambda one: f"{one.num_stopped:,}"),
    ("estimated starts", _estimate),
    ("promises", _promises),
    (
        "a pass, CPU: median · p99 · max",
        lambda one: " · ".join(
            f"{value * 1000:.1f} ms" for value in (one.pass_median_s, one.pass_p99_s, one.pass_max_s)
        ),
    ),
    (
        "· at the longest queue, the slowest",
        lambda one: f"{one.pass_long_s * 1000:.1f} ms over {one.longest_queue:,} jobs",
    ),
)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
