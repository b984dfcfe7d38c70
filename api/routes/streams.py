"""Server-Sent Events: one job from a cursor on, or all jobs and hosts from now on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from api import deps, schemas
from api.deps import Caller, CurrentPlane, JobId
from api.errors import blame, documented
from api.state import Plane
from api.streaming import job_changes
from api.streaming.job_changes import Cursor
from store.tokens import Identity

router = APIRouter(tags=["streams"])

HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events, each with its JSON in `data`",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class Following(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: str = Field(
        "", max_length=32, description="A job's `cursor`, or the `id` of a message; everything where it is left out."
    )


@router.get(
    "/jobs/{job_id}/stream",
    response_class=StreamingResponse,
    responses={**_EVENTS, **documented("not_found", "invalid_request", "rate_limited")},
)
def stream_job(
    job_id: JobId,
    query: Annotated[Following, Query()],
    plane: CurrentPlane,
    caller: Caller,
    last_event_id: Annotated[str, Header(max_length=32, description="Goes before `after`.")] = "",
) -> StreamingResponse:
    """`job`, `metrics`, `log` and `event` messages; `end` when the job has ended and everything has been sent."""
    cursor = (
        _cursor(last_event_id, field="header.Last-Event-ID")
        if last_event_id
        else _cursor(query.after or "0", field="query.after")
    )
    with plane.database.read() as session:
        deps.visible_job(session, job_id, caller)
    plane.streams.check_room()
    return StreamingResponse(_job(plane, caller, job_id, cursor), media_type="text/event-stream", headers=HEADERS)


@router.get("/stream", response_class=StreamingResponse, responses={**_EVENTS, **documented("rate_limited")})
def stream_all(plane: CurrentPlane, caller: Caller) -> StreamingResponse:
    """`reset` once, then a `job` or a `host` whenever one changes."""
    plane.streams.check_room()
    return StreamingResponse(_all(plane, caller), media_type="text/event-stream", headers=HEADERS)


async def _job(plane: Plane, caller: Identity, job_id: str, cursor: Cursor) -> AsyncIterator[bytes]:
    with plane.streams.open(caller) as stream:
        yield b": following\n\n"
        async for data in plane.job_feeds.follow(job_id, cursor, stream):
            yield data


async def _all(plane: Plane, caller: Identity) -> AsyncIterator[bytes]:
    with plane.streams.open(caller) as stream:
        yield b": following\n\n"
        async for data in plane.plane_feed.follow(stream):
            yield data


def _cursor(text: str, *, field: str) -> Cursor:
    try:
        return job_changes.parse(text)
    except ValueError:
        fix = "give a job's `cursor` or the `id` of a message of its stream"
        raise blame(
            "invalid_request", [schemas.FieldError(field=field, code="no_cursor", message="is no cursor", fix=fix)]
        ) from None
