"""`./run faults`: faults at random for some minutes, or with --all every fault test at its full count and the default timings."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from store.db import Base
from store.settings import Settings
from tests import postgres
from tests.faults import plane as planes
from tests.faults import proxy, report
from tests.faults.loop import Loop
from tests.faults.plane import ROOT, Plane
from tests.faults.timings import Timings

TIMINGS = Timings(1 / 20, patience_s=90.0)
VARIABLES = {"LONGYARD_HANG_S": "8"}
DEVICES = {"a": 4, "b": 4}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str]) -> int:
    options = _parse(argv)
    if options.all:
        os.environ["LONGYARD_TEST_FAULTS"] = "all"
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "tests/faults"])
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    root = Path(tempfile.mkdtemp(prefix="longyard-faults-"))
    print(f"seed {options.seed}, {options.minutes:g} minutes, state in {root}", flush=True)
    verdict = _run(options, root)
    if verdict == 0:
        shutil.rmtree(root, ignore_errors=True)
    return verdict


def _run(options: argparse.Namespace, root: Path) -> int:
    began = time.monotonic()
    problem: str | None = None
    loop: Loop | None = None
    try:
        with _plane(options.database, root) as plane:
            loop = Loop(plane, random.Random(options.seed), lambda words: print(words, flush=True), options.database)
            try:
                loop.run(until_s=began + 60 * options.minutes)
            except AssertionError:
                _keep_rows(plane)
                raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        problem = "interrupted"
    except AssertionError as error:
        traceback.print_exc()
        problem = str(error)
    lines = report.lines(
        loop, seed=options.seed, minutes=(time.monotonic() - began) / 60, database=options.database, problem=problem
    )
    print("\n".join(lines))
    if options.report:
        options.report.write_text("\n".join(lines) + "\n", "utf-8")
    if problem is None:
        return 0
    print(
        f"\n{problem}\nThe state is kept in {root}; the same again: ./run faults --seed {options.seed} --database {options.database}",
        file=sys.stderr,
    )
    return 130 if problem == "interrupted" else 1


@contextmanager
def _plane(database: str, root: Path) -> Generator[Plane]:
    """Two hosts; every way to a server is one that can be cut."""
    way, redis_url = proxy.to_broker(str(Settings(data_dir=root / "data").broker_socket))
    if database == "sqlite":
        with planes.running(
            root,
            TIMINGS,
            devices=DEVICES,
            redis_url=redis_url,
            ways={"broker": way},
            switches=("clocks",),
            variables=VARIABLES,
        ) as plane:
            yield plane
        return
    with postgres.server() as server:
        name = postgres.create(server)
        url = postgres.url(server, name)
        cuttable = {part: proxy.to_postgres(url) for part in ("api", *(f"worker {host}" for host in DEVICES))}
        with planes.running(
            root,
            TIMINGS,
            devices=DEVICES,
            redis_url=redis_url,
            database_url=url,
            variables=VARIABLES,
            ways={"broker": way, **{part: one for part, (one, _) in cuttable.items()}},
            part_variables={part: {"LONGYARD_DATABASE_URL": through} for part, (_, through) in cuttable.items()},
        ) as plane:
            yield plane
        postgres.drop(server, name)


def _keep_rows(plane: Plane) -> None:
    """Beside the logs and the files of every attempt: an embedded server ends with the loop, and its rows with it."""
    if plane.database.is_sqlite:
        return
    directory = plane.root / "rows"
    directory.mkdir()
    with plane.database.read() as session, session.connection() as connection:
        for table in Base.metadata.sorted_tables:
            rows = connection.execute(table.select()).mappings()
            (directory / f"{table.name}.txt").write_text("\n".join(str(dict(row)) for row in rows), "utf-8")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="what is done, and to which job")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--report", type=Path, help="write the report here too, in Markdown")
    parser.add_argument("--all", action="store_true", help="the fault tests instead: full counts, default timings")
    return parser.parse_args(argv)


def _interrupt(_number: int, _frame: object) -> None:
    # Once: what a second signal would interrupt is the ending of every process.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
