"""`python -m benchmarks plane | trainer`, which is what `./run bench` runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

BENCHES: Final = {
    "plane": ("control_plane", "the control plane: submissions, launches, stops, lists, metrics, memory"),
    "trainer": ("trainer", "the trainer, against stock transformers in the same run"),
}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if argv[0] not in BENCHES:
        sys.stderr.write(f"no bench {argv[0]!r}\n\n{usage()}\n")
        return 2
    module = f"benchmarks.{BENCHES[argv[0]][0]}.__main__"
    try:
        # Imported here: one bench needs torch, the other must not wait for it.
        bench = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        sys.stderr.write(f"the {argv[0]} bench is not built yet\n")
        return 2
    return bench.main(argv[1:])


def usage() -> str:
    lines = [f"  {name:<10}{title}" for name, (_, title) in BENCHES.items()]
    return "Usage: ./run bench NAME [--quick] [--json FILE]\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
