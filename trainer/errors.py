"""Owns the errors a rank can end with, and the exit code of each.

TrainerError                exit
├── BadInput                   2  the spec or its data cannot be trained on; a retry would not help
├── Stopped                    3  asked to stop; a checkpoint was written if any step was taken
├── Diverged                   4  the loss or its gradient is NaN or infinite
└── BrokenCheckpoint           6  a checkpoint is not the one its manifest describes

Errors of torch and of the operating system are told apart by `exit_code`: 5 out of memory, 6 storage, 7 a peer was
lost, 1 anything else.
"""

import errno
from typing import ClassVar

from pydantic import ValidationError


class TrainerError(Exception):
    """Base of the errors the trainer raises on purpose."""

    kind: ClassVar[str] = "exception"
    exit_code: ClassVar[int] = 1


class BadInput(TrainerError):
    kind = "bad_input"
    exit_code = 2


class Stopped(TrainerError):
    kind = "stopped"
    exit_code = 3


class Diverged(TrainerError):
    kind = "diverged"
    exit_code = 4


class BrokenCheckpoint(TrainerError):
    kind = "storage"
    exit_code = 6


_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}
# torch, safetensors and gloo raise plain RuntimeErrors for these; only their text tells them apart.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_STORAGE_WORDS = ("no space left on device", "os error 28", "disk quota exceeded", "input/output error")
_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "timed out after",
    "application timeout caused pair closure",
    "socket closed",
    "remote process exited",
    "hccl",
    "nccl",
)


def classify(error: BaseException) -> tuple[str, int]:
    """The kind of an error and the exit code a rank leaves with."""
    if isinstance(error, TrainerError):
        return error.kind, error.exit_code
    if isinstance(error, ValidationError):
        return "bad_input", 2
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or _has(text, _MEMORY_WORDS):
        return "out_of_memory", 5
    if (isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS) or _has(text, _STORAGE_WORDS):
        return "storage", 6
    if _raised_by_torch(error) and _has(text, _PEER_WORDS):
        return "lost_peer", 7
    return "exception", 1


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _raised_by_torch(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("torch")
