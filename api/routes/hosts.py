"""Hosts and their devices: who holds what; taken out of use, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Path
from sqlalchemy.orm import Session

from api import schemas, serializers
from api.deps import CurrentPlane, Operator
from api.errors import documented
from api.state import Plane
from store import hosts
from store.tokens import Identity

router = APIRouter(tags=["hosts"])
log = structlog.get_logger("api.submission.host_cache")

Name = Annotated[str, Path(max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$", description="A host's name.")]
Index = Annotated[int, Path(ge=0, le=1023, description="A device's index on its host.")]

_CHANGE: Final[Any] = {"responses": documented("not_found", "forbidden", "invalid_request")}


@router.get("/hosts")
def list_hosts(plane: CurrentPlane) -> schemas.Hosts:
    """By name, with their devices and who holds each."""
    with plane.database.read() as session:
        return schemas.Hosts(data=[serializers.host(view) for view in hosts.all_hosts(session)])


@router.post("/hosts/{name}/drain", **_CHANGE)
def drain_host(name: Name, plane: CurrentPlane, caller: Operator) -> schemas.Host:
    """Nothing new starts there, also after its worker restarts; what runs goes on. Again is no error."""
    return _change("drained", lambda session: hosts.drain(session, name), name, plane, caller)


@router.post("/hosts/{name}/undrain", **_CHANGE)
def undrain_host(name: Name, plane: CurrentPlane, caller: Operator) -> schemas.Host:
    """It takes jobs again. Again is no error."""
    return _change("undrained", lambda session: hosts.undrain(session, name), name, plane, caller)


@router.post("/hosts/{name}/devices/{index}/cordon", **_CHANGE)
def cordon_device(name: Name, index: Index, plane: CurrentPlane, caller: Operator) -> schemas.Host:
    """The device is given to no other job; one that runs on it goes on. Again is no error."""
    return _change("cordoned", lambda session: hosts.cordon(session, name, index), name, plane, caller, device=index)


@router.post("/hosts/{name}/devices/{index}/uncordon", **_CHANGE)
def uncordon_device(name: Name, index: Index, plane: CurrentPlane, caller: Operator) -> schemas.Host:
    """The device is given out again. Again is no error."""
    return _change(
        "uncordoned", lambda session: hosts.uncordon(session, name, index), name, plane, caller, device=index
    )


def _change(
    what: str, change: Callable[[Session], object], name: str, plane: Plane, caller: Identity, **where: int
) -> schemas.Host:
    with plane.database.write() as session:
        change(session)
        session.flush()
        answer = serializers.host(hosts.view(session, name))
    log.info(what, host=name, by=caller.owner, **where)
    plane.hints.host_changed(name)
    return answer
