"""A rank without torch: LONGYARD_TRAINER_MODULE=benchmarks.control_plane.noop_trainer. The first word of its train_file says what it does.

Without such a word: one log line, one metric line, results.json, exit 0. `wait`: until SIGTERM, then exit 3. `steps N`: N reports at
irregular intervals, each with the monotonic time of its writing as its value. `points N`: N points at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

SERIES = 8
"""A report's values, for `points`: loss, its smoothed form, learning rate, gradient norm, speeds."""

STOPPED = 3
LINE = "trivial"


def main() -> int:
    config_path = sys.argv[sys.argv.index("--config") + 1]
    run_dir = os.path.dirname(config_path)
    word, _, count = _read(json.loads(_read(config_path))["train_file"]).strip().partition(" ")
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


def steps(run_dir: str, count: int) -> None:
    for step in range(1, count + 1):
        time.sleep(0.05 + step * 0.137 % 0.35)
        report(run_dir, metrics_line(step, {"written": time.monotonic()}))


def points(run_dir: str, count: int) -> None:
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


def report(run_dir: str, text: str) -> None:
    with open(f"{run_dir}/metrics.jsonl", "ab") as file:
        file.write(text.encode())


def metrics_line(step: int, values: dict[str, float]) -> str:
    return json.dumps({"kind": "metrics", "step": step, "values": values, "at": time.time()}) + "\n"


def succeed(run_dir: str) -> None:
    unfinished = f"{run_dir}/output.tmp"
    os.mkdir(unfinished)
    with open(f"{unfinished}/results.json", "w", encoding="utf-8") as file:
        file.write(json.dumps({"perplexity": 2.5, "fps": 100.0, "epochs": 1.0}))
    os.rename(unfinished, f"{run_dir}/output")


def _read(path: str) -> str:
    # pathlib takes longer to import than all the rest of this program takes to run.
    with open(path, encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    # Blocked before anything is said: who hears us may stop us at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    code = main()
    sys.stdout.flush()
    os._exit(code)
