"""What routes are given: the plane, who is asking, and the job that a path names.

They wait for nothing, so they are coroutines: a plain function would be sent to a thread and back, each of them.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Path, Request
from sqlalchemy.orm import Session

from api.errors import Problem
from api.state import Plane
from store import jobs
from store.models import Job
from store.tokens import Identity

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def plane(request: Request) -> Plane:
    return request.app.state.plane


async def identity(request: Request) -> Identity:
    """The guard has put it there; a route that is open to anyone must not ask."""
    return request.state.identity


async def job_id(job_id: Annotated[str, Path(description="A job's id.")]) -> str:
    """What no job was ever named is answered like a job that is not there, before the database sees it."""
    if not _ID.fullmatch(job_id):
        raise Problem("not_found", "No such job.")
    return job_id


async def operator(identity: Annotated[Identity, Depends(identity)]) -> Identity:
    """Raises Problem for who may not change the hosts."""
    if identity.scope != "admin":
        raise Problem("forbidden", "Only an admin may change hosts.")
    return identity


def owner_filter(identity: Identity) -> str | None:
    """Whose jobs one may see: None is everybody's."""
    return None if identity.scope == "admin" else identity.owner


def visible_job(session: Session, job_id: str, identity: Identity) -> Job:
    """Raises store.errors.NotFound, also where the job is somebody else's."""
    return jobs.get(session, job_id, owner=owner_filter(identity))


CurrentPlane = Annotated[Plane, Depends(plane)]
Caller = Annotated[Identity, Depends(identity)]
Operator = Annotated[Identity, Depends(operator)]
JobId = Annotated[str, Depends(job_id)]
