"""Roles that one process at a time plays. Taken by counting up; taken over from a holder whose beat a rival saw standing still."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from store.models import Lease

SWEEP: Final = "sweep"


def take(session: Session, name: str, *, holder: str, stale_beat: int | None = None) -> Lease:
    """Renew the role, or take it where it is nobody's or its beat is still `stale_beat`, which the caller judged expired.

    The answer's `holder` says who has it now. Two that take a new role at once: one gets an IntegrityError, and tries again.
    """
    lease = session.get(Lease, name, with_for_update=True, populate_existing=True)
    if lease is None:
        lease = Lease(name=name, holder=holder, beat=0)
        session.add(lease)
    if lease.holder == holder or (stale_beat is not None and lease.beat == stale_beat):
        lease.holder = holder
        lease.beat += 1
    session.flush()
    return lease


def give_back(session: Session, name: str, *, holder: str) -> None:
    """A holder that leaves in order lets the next one in at once."""
    lease = session.get(Lease, name, with_for_update=True, populate_existing=True)
    if lease is not None and lease.holder == holder:
        session.delete(lease)
