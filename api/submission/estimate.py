"""Asks for the estimate of a spec, in a process of its own: it opens files of users with libraries that may break on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Final

import structlog
from pydantic import ValidationError

from linux import child
from store.placement.types import ANY
from trainer.estimate import request as estimate
from trainer.estimate.request import Estimate, Request
from trainer.spec.config import TrainConfig

AT_ONCE: Final = 2
# It ends itself earlier; this is for one that cannot.
LIMIT_S: Final = estimate.LIMIT_S + 10.0

log = structlog.get_logger("api.submission.estimate")
_turns: Final = threading.BoundedSemaphore(AT_ONCE)


def of(train: TrainConfig, *, num_devices: int, device_type: str) -> Estimate:
    """What the job would take. Where nothing can be said, why. Blocks for about a second, for LIMIT_S at most."""
    known = None if device_type == ANY else device_type
    request = Request.model_validate({"train": train, "num_devices": num_devices, "device_type": known})
    if not _turns.acquire(blocking=False):
        return estimate.unknown("other estimates are being made; ask again in a moment")
    try:
        return _ask(request.model_dump_json())
    finally:
        _turns.release()


def _ask(request: str) -> Estimate:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trainer.estimate"],
            input=request.encode(),
            capture_output=True,
            cwd="/",
            env=_environment(),
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return estimate.unknown(_say_ended(-signal.SIGALRM))
    except OSError as error:
        return estimate.unknown(f"no process could be started for it: {error.strerror}")
    if done.returncode:
        told = done.stderr[-2000:].decode(errors="replace")
        log.warning("an estimate failed", exit_code=done.returncode, stderr=told)
        return estimate.unknown(_say_ended(done.returncode))
    try:
        return Estimate.model_validate_json(done.stdout)
    except ValidationError:
        log.warning("an estimate makes no sense", stdout=done.stdout[:2000].decode(errors="replace"))
        return estimate.unknown("the estimate could not be read")


def _say_ended(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"not done within {estimate.LIMIT_S} s: the tokenizer or the text is too slow to read"
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGBUS):
        return (
            "the tokenizer or the text took more memory than an estimate may have, or broke the library that reads it"
        )
    return "reading the tokenizer or the text failed; the API's log has the details"


def _environment() -> dict[str, str]:
    """The API's own, without its settings: the database's address is nothing for who opens files of users."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    return {**kept, "PYTHONPATH": child.python_path()}
