"""What `./run COMMAND` becomes once .venv holds what the command needs."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from cli import console
from dev import bootstrap


def main(argv: Sequence[str]) -> int:
    """Run one command of install.COMMANDS. Returns its exit code: 130 when it was interrupted."""
    # A non-interactive shell starts background jobs with ^C ignored; a ^C sent to one is still meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = f"{bootstrap.VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    try:
        return _command(argv[0])(argv[1:])
    except console.StepError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that was closed
            print("\nStopped.", file=sys.stderr)
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    # Imported here: `lint` must work while another room does not import, and the demo needs rich, which `test` may be mending.
    if name == "demo":
        from dev import demo

        return demo.main
    if name == "up":
        return _up
    from dev import checks

    return {
        "test": checks.test,
        "lint": checks.lint,
        "bench": checks.bench,
        "faults": checks.faults,
        "mutants": checks.mutants,
        "simulate": checks.simulate,
    }[name]


def _up(argv: Sequence[str]) -> int:
    from cli import commands as main
    from dev import demo, web_build

    web_build.build()
    os.environ.update(demo.up_environment(os.environ))
    sys.argv = ["./run", "up", *argv]
    main.entry("./run")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
