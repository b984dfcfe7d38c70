"""Whether this process answers, and whether it can do its work."""

from __future__ import annotations

from fastapi import APIRouter

from api import schemas
from api.deps import CurrentPlane
from api.errors import Problem, documented
from store.db import REVISION

router = APIRouter(tags=["operations"])


@router.get("/healthz", openapi_extra={"security": []})
async def get_health() -> schemas.Health:
    """Touches nothing: an answer means that the process is alive."""
    return schemas.Health(status="ok")


@router.get("/readyz", responses=documented("not_ready"))
def get_readiness(plane: CurrentPlane) -> schemas.Health:
    """Whether the database is there, and at the schema that this code was written for."""
    revision = plane.database.schema_revision()
    if revision != REVISION:
        raise Problem(
            "not_ready",
            f"The database is at schema {revision}, this code needs {REVISION}. Run `python -m migrations`.",
        )
    return schemas.Health(status="ok")
