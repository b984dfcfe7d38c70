"""A rank without torch: LONGYARD_TRAINER_MODULE=benchmarks.trivial_trainer. The first word of its train_file says what it does.

Without such a word: one log line, one metric line, results.json, exit 0. `wait`: until SIGTERM, then exit 3. `steps N`: N reports at
irregular intervals, each with the monotonic time of its writing as its value. `points N`: N points at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

SERIES = 8
"""A report's values, for `points`: loss, its smoothed form, learning rate, gradient norm, speeds."""

STOPPED = 3
LINE = "trivial"


def main() -> int:
    config_path = Path(sys.argv[sys.argv.index("--config") + 1])
    run_dir = config_path.parent
    word, _, count = Path(json.loads(config_path.read_bytes())["train_file"]).read_text("utf-8").strip().partition(" ")
    print(LINE, flush=True)
    if word == "wait":
        return wait()
    if word == "steps":
        steps(run_dir, int(count))
    elif word == "points":
        points(run_dir, int(count))
        return wait()
    else:
        report(run_dir, metrics_line(1, {"loss": 1.0}))
    succeed(run_dir)
    return 0


def wait() -> int:
    signal.sigwait([signal.SIGTERM])
    return STOPPED


def steps(run_dir: Path, count: int) -> None:
    pauses = random.Random(1)  # noqa: S311
    for step in range(1, count + 1):
        time.sleep(pauses.uniform(0.05, 0.4))
        report(run_dir, metrics_line(step, {"written": time.monotonic()}))


def points(run_dir: Path, count: int) -> None:
    """All in one write, so that writing them takes no part in what is measured; the log's second line is when."""
    lines = [
        metrics_line(step, {f"series{number}": point_value(step, number) for number in range(SERIES)})
        for step in range(count // SERIES)
    ]
    data = "".join(lines)
    print(f"written {time.monotonic()}", flush=True)
    report(run_dir, data)


def point_value(step: int, number: int) -> float:
    return step + number / 10


def report(run_dir: Path, text: str) -> None:
    with open(run_dir / "metrics.jsonl", "ab") as file:
        file.write(text.encode())


def metrics_line(step: int, values: dict[str, float]) -> str:
    return json.dumps({"kind": "metrics", "step": step, "values": values, "at": time.time()}) + "\n"


def succeed(run_dir: Path) -> None:
    unfinished = run_dir / "output.tmp"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "results.json").write_text(json.dumps({"perplexity": 2.5, "fps": 100.0, "epochs": 1.0}), "utf-8")
    unfinished.rename(run_dir / "output")


if __name__ == "__main__":
    # Blocked before anything is said: who hears us may stop us at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    code = main()
    sys.stdout.flush()
    os._exit(code)
