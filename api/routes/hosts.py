"""Hosts and their devices."""

from __future__ import annotations

from fastapi import APIRouter

from api import schemas, views
from api.deps import CurrentPlane
from store import hosts

router = APIRouter(tags=["hosts"])


@router.get("/hosts")
def list_hosts(plane: CurrentPlane) -> schemas.Hosts:
    """By name, with their devices and who holds each."""
    with plane.database.read() as session:
        return schemas.Hosts(data=[views.host(view) for view in hosts.all_hosts(session)])
