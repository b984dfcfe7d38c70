"""The errors the store raises. It knows no HTTP: `api/errors.py` gives them their statuses.

LongyardError
├── NotFound                 no such job, host or attempt, or not yours to see
├── IllegalTransition        the entity's status does not allow what was asked
├── IdempotencyConflict      the same Idempotency-Key came with another body
├── TooManyJobs              the queue is at its limit
├── PlacementConflict        the job or a device was taken between planning and placing
├── LeaseLost                a supervisor wrote for an attempt that is no longer open
├── Unauthenticated          a token or login code that is unknown, used, expired or revoked
├── PathRefused              a path in a spec that is outside the data roots, or of the wrong kind
│   └── PathUnreachable      what it lies on does not answer now: nobody's mistake
├── UnsuitableDisk           SQLite would lie where its locks do not hold
├── BadSettings              an environment variable has a value that cannot be
└── EmbeddedUnavailable      the embedded server cannot be started here
"""

from __future__ import annotations


class LongyardError(Exception):
    """The root of everything the store raises on purpose. `str()` is a sentence for people."""


class NotFound(LongyardError):
    pass


class IllegalTransition(LongyardError):
    pass


class IdempotencyConflict(LongyardError):
    pass


class TooManyJobs(LongyardError):
    pass


class PlacementConflict(LongyardError):
    pass


class LeaseLost(LongyardError):
    pass


class Unauthenticated(LongyardError):
    pass


class PathRefused(LongyardError):
    """`fix` is the way out, in words."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class PathUnreachable(PathRefused):
    pass


class EmbeddedUnavailable(LongyardError):
    pass


class UnsuitableDisk(LongyardError):
    pass


class BadSettings(LongyardError):
    pass
