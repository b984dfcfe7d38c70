"""Owns traces: what was submitted when, by whom, and how long it ran. Read from a file (docs/simulate.md), or made up from a seed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

MAX_DEVICES: Final = 8
DAY_S: Final = 86_400.0
LATEST_S: Final = 1e10
"""Three hundred years: up to there a second still counts in a sum of floats."""


class BadTrace(ValueError):
    """A file that is no trace, told by its line."""


@dataclass(frozen=True, slots=True)
class TraceJob:
    """Seconds count from the trace's beginning. `estimate_error`: what is told to be left of it while it runs, over what is left;
    1 is exact. `limit_s`: its time limit, which ends it."""

    id: str
    submitted_s: float
    owner: str
    devices: int
    duration_s: float
    estimate_error: float = 1.0
    priority: int = 0
    limit_s: float | None = None


def read(path: Path) -> list[TraceJob]:
    """By submission. Raises BadTrace, and OSError."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path.name}: not UTF-8 at byte {error.start}") from None
    numbered = _json_lines(text) if path.suffix in (".jsonl", ".json") else _csv_rows(text)
    jobs = [_job(row, number, f"{path.name}:{number}") for number, row in numbered]
    if not jobs:
        raise BadTrace(f"{path.name}: no jobs in it")
    if len({job.id for job in jobs}) < len(jobs):
        raise BadTrace(f"{path.name}: two jobs have the same id")
    return sorted(jobs, key=lambda job: (job.submitted_s, job.id))


def write(jobs: Iterable[TraceJob], path: Path) -> None:
    """As JSON lines or, by the file's ending, as CSV."""
    rows = [{field.name: getattr(job, field.name) for field in fields(TraceJob)} for job in jobs]
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(TraceJob)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@dataclass(frozen=True)
class Mix:
    """A made-up day: how large, how long, whose. The numbers are ours, shaped like published cluster traces: most jobs are small and
    short, most device time goes to the few that are neither."""

    sizes: Sequence[int] = (1, 2, 4, 8)
    size_shares: Sequence[float] = (0.60, 0.12, 0.12, 0.16)
    median_s: float = 1200.0
    spread: float = 1.5
    longest_s: float = DAY_S
    num_owners: int = 20
    limited: float = 0.4
    error_spread: float = 0.15
    sweeps: float = 0.02
    sweep_size: int = 40
    high: float = 0.01
    low: float = 0.10


def synthetic(num_jobs: int, *, num_devices: int, load: float, seed: int, mix: Mix | None = None) -> list[TraceJob]:
    """So many jobs, arriving at such a rate that they ask for `load` times the devices; more by day than by night, some in sweeps."""
    mix = mix or Mix()
    random = np.random.default_rng(seed)
    sizes = random.choice(mix.sizes, num_jobs, p=mix.size_shares)
    durations = np.clip(random.lognormal(np.log(mix.median_s), mix.spread, num_jobs), 10.0, mix.longest_s).round(1)
    owners = random.choice(mix.num_owners, num_jobs, p=_zipf(mix.num_owners))
    errors = random.lognormal(0.0, mix.error_spread, num_jobs).round(3)
    classes = random.choice([100, -10, 0], num_jobs, p=[mix.high, mix.low, 1 - mix.high - mix.low])
    limits = np.where(random.random(num_jobs) < mix.limited, durations * random.uniform(1.1, 5.0, num_jobs), np.nan)
    in_sweep = np.zeros(num_jobs, dtype=bool)
    for start in np.flatnonzero(random.random(num_jobs) < mix.sweeps / mix.sweep_size):
        one = slice(start, start + mix.sweep_size)
        in_sweep[one], owners[one], sizes[one], classes[one] = True, owners[start], 1, 0
    # Sweeps change what was drawn, so the rate is found last: by what all of them ask for.
    span_s = float((sizes * durations).sum()) / (num_devices * load)
    arrivals = _arrivals(random, num_jobs, in_sweep, span_s)
    return [
        TraceJob(
            id=f"j{number:06}",
            submitted_s=float(arrivals[number]),
            owner=f"owner-{owners[number]:02}",
            devices=int(sizes[number]),
            duration_s=float(durations[number]),
            estimate_error=float(errors[number]),
            priority=int(classes[number]),
            limit_s=None if np.isnan(limits[number]) else round(float(limits[number]), 1),
        )
        for number in range(num_jobs)
    ]


def _zipf(count: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, count + 1)
    return weights / weights.sum()


def _arrivals(random: np.random.Generator, num_jobs: int, in_sweep: np.ndarray, span_s: float) -> np.ndarray:
    """Three times as many around 14 h as around 2 h; a sweep's jobs come a second apart."""
    gaps = random.exponential(1.0, num_jobs)
    gaps[1:][in_sweep[1:] & in_sweep[:-1]] = 0.0
    at = np.cumsum(gaps)
    at *= span_s / at[-1]
    hour = 2 * np.pi * at / DAY_S
    # Time runs faster where more arrive: the integral of 1 / (1 - 0.5 cos), to first order.
    at = np.sort(at + 0.4 * DAY_S / (2 * np.pi) * np.sin(hour) * min(1.0, span_s / DAY_S))
    return (at - at[0] + np.arange(num_jobs) * 1e-3).round(3)


def _csv_rows(text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        if None in row or None in row.values():
            raise BadTrace(f"line {reader.line_num}: as many values as there are columns")
        yield reader.line_num, {key.strip(): value.strip() for key, value in row.items() if value.strip()}


def _json_lines(text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadTrace(f"line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadTrace(f"line {number}: no JSON object")
        yield number, {str(key): value for key, value in row.items() if value is not None}


def _job(row: dict[str, Any], number: int, where: str) -> TraceJob:
    unknown = row.keys() - {field.name for field in fields(TraceJob)}
    if unknown:
        raise BadTrace(f"{where}: unknown {', '.join(sorted(unknown))}")
    try:
        job = TraceJob(
            id=str(row.get("id", f"{number:07}")),
            submitted_s=float(row["submitted_s"]),
            owner=str(row["owner"]),
            devices=_whole(row["devices"]),
            duration_s=float(row["duration_s"]),
            estimate_error=float(row.get("estimate_error", 1.0)),
            priority=_whole(row.get("priority", 0)),
            limit_s=float(row["limit_s"]) if "limit_s" in row else None,
        )
    except KeyError as error:
        raise BadTrace(f"{where}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadTrace(f"{where}: {error}") from None
    _check(job, where)
    return job


def _whole(value: Any) -> int:
    """Raises ValueError, also for what int() would round."""
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _check(job: TraceJob, where: str) -> None:
    bounds = {
        "submitted_s": 0 <= job.submitted_s < LATEST_S,
        "devices": 1 <= job.devices <= MAX_DEVICES,
        "duration_s": 0 < job.duration_s < LATEST_S,
        "estimate_error": 0 < job.estimate_error < np.inf,
        "limit_s": job.limit_s is None or 0 < job.limit_s < LATEST_S,
    }
    if wrong := [name for name, holds in bounds.items() if not holds]:
        raise BadTrace(f"{where}: {wrong[0]} is {getattr(job, wrong[0])}")
