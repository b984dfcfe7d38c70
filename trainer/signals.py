"""Owns the wish to stop: SIGTERM, or ^C by hand.

The signals are blocked and taken by a thread of their own: a rank that waits inside the rendezvous or a collective
runs no Python signal handler. Until `defer` they end the process at once; afterwards they set a flag, and the loop
saves a checkpoint at a step all ranks agree on. Loader workers are forked with the signals blocked and stay so: torchrun and
terminals send them to whole process groups, and a rank without its workers could not reach the step it saves at.
"""

import os
import signal
import sys
import threading

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
EXIT_CODE = 3


class StopWish:
    """Whether this rank has been asked to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._deferred = threading.Event()

    def is_asked(self) -> bool:
        return self._asked.is_set()

    def defer(self) -> None:
        """From here on a signal only sets the flag: there is something worth saving."""
        self._deferred.set()

    def watch(self) -> None:
        while True:
            number = signal.sigwait(_SIGNALS)
            name = signal.Signals(number).name
            if not self._deferred.is_set():
                _leave(f"{name} before the first step: stopped, no checkpoint", EXIT_CODE)
            if self._asked.is_set() and number == signal.SIGINT:
                _leave("^C again: stopped without saving", 128 + number)
            _say(f"{name}: stopping after this step")
            self._asked.set()


def listen() -> StopWish:
    """Blocks the signals for every thread yet to start, and watches them. Call before torch starts its threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    wish = StopWish()
    threading.Thread(target=wish.watch, name="stop", daemon=True).start()
    return wish


def _leave(message: str, code: int) -> None:
    _say(message)
    sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    # One write to the descriptor: the main thread may hold the lock of sys.stdout.
    os.write(1, message.encode() + b"\n")
