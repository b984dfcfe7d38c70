"""Ranks as real processes without their imports: `python -m tests.trainer.forked`, a run a line on stdin.

Imports the trainer once, then forks the ranks of each run in turn, and answers with their exit codes. They are what
`python -m trainer` becomes after its imports: own pids, environment, logs and gloo connections. A run is
{"directory", "world_size", "before"}; `before` names a function "module:name" that each rank calls first.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from trainer import __main__ as rank
from trainer import loop

# What each rank would import.
IMPORTED = loop


def main() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        pids = [_fork(run, number) for number in range(run["world_size"])]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _fork(run: dict[str, Any], number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        directory = Path(run["directory"])
        log = os.open(directory / f"r{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(run["world_size"])}
        if run.get("before"):
            module, _, name = run["before"].partition(":")
            getattr(importlib.import_module(module), name)(directory)
        code = rank.main(["--config", str(directory / "config.json")])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
