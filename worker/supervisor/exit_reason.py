"""Owns the verdict on an attempt: from exit codes, signals, error files and the logs' last lines to one reason and one plain sentence."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from linux import proc
from linux.oom import OomWatch
from store.states import ExitReason, Intent
from worker.devices import ascend, plog
from worker.devices.ascend import Action, Signature
from worker.ingest.tail import clean, decode, printable, size
from worker.supervisor import ranks
from worker.supervisor.ranks import Rank, Ranks

TOGETHER_S: Final = 5.0
"""Failures this close together have one cause: the most telling of them, not the first to be seen."""

MAX_MESSAGE_CHARS: Final = 500
MAX_RESULT_BYTES: Final = 1 << 20
LOOK_BACK_BYTES: Final = 64 * 1024

BY_EXIT_CODE: Final = {
    2: ExitReason.USER_ERROR,
    4: ExitReason.DIVERGED,
    5: ExitReason.OUT_OF_MEMORY,
    6: ExitReason.STORAGE,
    7: ExitReason.INFRA,
    ranks.EXEC_FAILED: ExitReason.LAUNCH_ERROR,
}
STOPPED: Final = 3

BY_ERROR_KIND: Final = {
    "bad_input": ExitReason.USER_ERROR,
    "diverged": ExitReason.DIVERGED,
    "out_of_memory": ExitReason.OUT_OF_MEMORY,
    "storage": ExitReason.STORAGE,
    "lost_peer": ExitReason.INFRA,
    "exception": ExitReason.USER_ERROR,
}

LOADER_KILLED: Final = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([\w ]+)")
MEMORY_RAN_OUT: Final = "the kernel ended it because memory ran out; use smaller batches or fewer devices a host"

BY_TEXT: Final = (
    (re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE), ExitReason.OUT_OF_MEMORY),
    (re.compile(r"CUDA error: (?!out of memory)|uncorrectable ECC|device-side assert"), ExitReason.DEVICE_ERROR),
    (re.compile(r"No space left on device|Disk quota exceeded"), ExitReason.STORAGE),
    # A trainer that cannot be imported is the host's installation, not the user's spec.
    (re.compile(r"\b(?:ModuleNotFoundError|ImportError): |: No module named "), ExitReason.LAUNCH_ERROR),
)
"""Signatures in an exception's text that tell more than the exit code 1 with which it ended; those of Ascend are `ascend.SIGNATURES`."""

VAGUE: Final = (1, 7)
"""Exit codes behind which there may be a cause that a card's own words name."""


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended. `message` is a sentence for people; `result` is what output/results.json says.

    `action` is what the fault asks of the failing rank's card.
    """

    reason: ExitReason
    message: str | None
    failing_rank: int | None = None
    result: dict[str, Any] | None = None
    action: Action = Action.NONE


@dataclass(frozen=True)
class StopAsked:
    """A stop that was asked for, at a boot time, and the verdict on an attempt that obeys."""

    verdict: Verdict
    at: float


BY_INTENT: Final = {
    Intent.CANCEL: Verdict(ExitReason.USER_CANCELLED, "cancelled"),
    Intent.PAUSE: Verdict(ExitReason.PAUSED, "paused"),
    Intent.PREEMPT: Verdict(ExitReason.PREEMPTED, "stopped for its host; it goes on from its last checkpoint"),
}
"""What an attempt becomes that did as its job was asked to."""


def judge(attempt: Ranks, run_dir: Path, *, stop: StopAsked | None) -> Verdict:
    """The verdict once every rank has ended."""
    if all(rank.exit_code == 0 for rank in attempt.members):
        return _completed(run_dir)
    failure = _first_cause(attempt.members, run_dir)
    if stop is not None and (failure is None or failure.ended_at is None or failure.ended_at >= stop.at):
        return stop.verdict
    if failure is None:
        failure = next(rank for rank in attempt.members if rank.exit_code != 0)
    return _of_rank(failure, run_dir, attempt.oom)


def from_files(run_dir: Path, *, num_ranks: int, otherwise: Verdict) -> Verdict:
    """The verdict on an attempt whose supervisor died, so that nobody saw the exit codes."""
    if (run_dir / "output" / "results.json").exists():
        return _completed(run_dir)
    errors = [(error["monotonic"], rank, error) for rank in range(num_ranks) if (error := _error_of(run_dir, rank))]
    if errors:
        _, rank, error = min(errors, key=lambda item: (_is_consequence(item[2]), item[0]))
        return _explained(rank, None, _reason_by_error(error), _words(error), run_dir)
    return otherwise


def _completed(run_dir: Path) -> Verdict:
    path = run_dir / "output" / "results.json"
    try:
        if size(path) > MAX_RESULT_BYTES:
            raise ValueError("it is too large")
        result = decode(path.read_bytes())
        if result is None:
            raise ValueError("it is not a JSON object")
        found = cast(dict[str, Any], _storable(result))
    except (OSError, ValueError, RecursionError) as error:
        return Verdict(
            ExitReason.INFRA, _short(f"the ranks ended well, but output/results.json cannot be read: {error}")
        )
    return Verdict(ExitReason.COMPLETED, None, result=found | {"output": str(run_dir / "output")})


def _first_cause(members: Sequence[Rank], run_dir: Path) -> Rank | None:
    """The first failure by time; among those within `TOGETHER_S` of it, one that names its cause goes before a mere consequence,
    and a card's fault before what the other cards' ranks say of it."""
    failures = [rank for rank in members if rank.exit_code not in (None, 0, STOPPED) and not _was_ended_by_us(rank)]
    if not failures:
        return None
    first = min(_ended(rank) for rank in failures)
    together = [rank for rank in failures if _ended(rank) <= first + TOGETHER_S]
    order = {rank.number: _place_of_signature(rank, run_dir) if len(together) > 1 else 0 for rank in together}
    return min(together, key=lambda rank: (rank.exit_code in VAGUE, order[rank.number], _ended(rank), rank.number))


def _place_of_signature(rank: Rank, run_dir: Path) -> int:
    """The less, the nearer to a cause; the last place is for those who name none. Those whose exit code names it are all alike."""
    if rank.exit_code not in VAGUE:
        return 0
    found = ascend.diagnose(_evidence(run_dir, rank.number, rank.pid))
    return len(ascend.SIGNATURES) if found is None else ascend.SIGNATURES.index(found)


def _was_ended_by_us(rank: Rank) -> bool:
    return rank.told_at is not None and rank.exit_code in (-signal.SIGTERM, -signal.SIGKILL)


def _ended(rank: Rank) -> float:
    assert rank.ended_at is not None, "a rank that runs cannot be judged"
    return rank.ended_at


def _of_rank(rank: Rank, run_dir: Path, oom: OomWatch) -> Verdict:
    code = rank.exit_code
    assert code is not None
    if code < 0:
        return _of_signal(rank, -code, run_dir, oom)
    if code == STOPPED:
        return _verdict(rank.number, ExitReason.INFRA, "somebody outside told it to stop", verb="stopped")
    error = _error_of(run_dir, rank.number)
    last_line = _last_line(run_dir / f"r{rank.number}.log")
    words = _words(error) if error else last_line or f"it ended with exit code {code} and said nothing"
    if match := LOADER_KILLED.search(words):
        return _of_loader(rank, int(match[1]), match[2], oom)
    reason = BY_EXIT_CODE.get(code) or (_reason_by_error(error) if error else _reason_by_text(words))
    if code not in VAGUE:
        return _verdict(rank.number, reason, words)
    return _explained(rank.number, rank.pid, reason, words, run_dir)


def _explained(rank: int, pid: int | None, reason: ExitReason, words: str, run_dir: Path) -> Verdict:
    """With the card's own words, where it has said any: what they mean goes first."""
    found = ascend.diagnose(words) or ascend.diagnose(_evidence(run_dir, rank, pid))
    if found is None:
        return _verdict(rank, reason, words)
    return _of_signature(rank, found, words)


def _of_signature(rank: int, found: Signature, words: str, *, verb: str = "failed") -> Verdict:
    return replace(_verdict(rank, found.reason, f"{found.words} ({words})", verb=verb), action=found.action)


def _evidence(run_dir: Path, rank: int, pid: int | None) -> str:
    """All that a rank on an Ascend card has said towards its end: its log, and what the runtime logged of it. '' for other ranks."""
    if not (run_dir / plog.DIR).is_dir():
        return ""
    error = _error_of(run_dir, rank)
    return "\n".join(
        [_words(error) if error else "", *_last_lines(run_dir / f"r{rank}.log"), plog.errors(run_dir, pid)]
    )


def _of_signal(rank: Rank, number: int, run_dir: Path, oom: OomWatch) -> Verdict:
    name = proc.signal_name(number)
    if number == signal.SIGKILL and oom.has_killed([rank.pid]):
        return _verdict(rank.number, ExitReason.OUT_OF_MEMORY, f"{name}: {MEMORY_RAN_OUT}", verb="was killed by")
    found = ascend.diagnose(_evidence(run_dir, rank.number, rank.pid))
    if found is not None:
        return _of_signature(rank.number, found, f"it was ended by {name}")
    return _verdict(rank.number, ExitReason.INFRA, name, verb="was killed by")


def _of_loader(rank: Rank, pid: int, name: str, oom: OomWatch) -> Verdict:
    """A rank whose loader worker was killed ends with an exception, though nothing in it or its data was wrong."""
    if name == "Killed" and oom.has_killed([pid]):
        return _verdict(rank.number, ExitReason.OUT_OF_MEMORY, f"its loader worker was killed: {MEMORY_RAN_OUT}")
    return _verdict(rank.number, ExitReason.INFRA, f"its loader worker was killed ({name})")


def _verdict(rank: int, reason: ExitReason, words: str, *, verb: str = "failed") -> Verdict:
    separator = " " if verb.endswith("by") else ": "
    return Verdict(reason, _short(f"rank {rank} {verb}{separator}{words}"), failing_rank=rank)


def _reason_by_error(error: dict[str, Any]) -> ExitReason:
    reason = BY_ERROR_KIND.get(str(error.get("kind")), ExitReason.USER_ERROR)
    return (
        _reason_by_text(_words(error))
        if reason is ExitReason.USER_ERROR and error.get("kind") != "bad_input"
        else reason
    )


def _reason_by_text(text: str) -> ExitReason:
    return next((reason for pattern, reason in BY_TEXT if pattern.search(text)), ExitReason.USER_ERROR)


def _is_consequence(error: dict[str, Any]) -> bool:
    return error.get("kind") in ("lost_peer", "exception")


def _error_of(run_dir: Path, rank: int) -> dict[str, Any] | None:
    """r<rank>.error.json, where a rank that raised has left one."""
    path = run_dir / f"r{rank}.error.json"
    try:
        error = decode(path.read_bytes()) if size(path) <= MAX_RESULT_BYTES else None
    except OSError:
        return None
    if error is None:
        return None
    clock = error.get("monotonic")
    return error | {"monotonic": clock if isinstance(clock, int | float) else math.inf}


def _words(error: dict[str, Any]) -> str:
    """`Type: message`, the message's last line that says anything."""
    lines = [line.strip() for line in str(error.get("message", "")).splitlines() if line.strip()]
    kind = str(error.get("type") or "Exception")
    return f"{kind}: {lines[-1]}" if lines else kind


def _last_line(path: Path) -> str | None:
    return next((line.strip() for line in reversed(_last_lines(path)) if line.strip()), None)


def _last_lines(path: Path) -> list[str]:
    start = max(0, size(path) - LOOK_BACK_BYTES)
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(LOOK_BACK_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _short(text: str) -> str:
    """Printable and bounded: it stands in tables and on the page."""
    plain = printable(text)
    return plain if len(plain) <= MAX_MESSAGE_CHARS else plain[: MAX_MESSAGE_CHARS - 1] + "…"


def _storable(value: Any) -> Any:
    """JSON for both databases: no NaN, no infinity, no text they refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_storable(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {clean(str(key)): _storable(item) for key, item in cast(dict[Any, Any], value).items()}
    return value
