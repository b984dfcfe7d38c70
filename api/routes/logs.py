"""One rank's log as text: a range of it, its last lines, or all of it as it grows."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api import deps, schemas
from api.deps import Caller, CurrentPlane, JobId
from api.errors import Problem, blame, documented
from api.schemas import Line
from api.state import Plane
from api.streaming import rank_log
from api.streaming.rank_log import Span
from store import attempts
from store.models import Attempt, Job
from store.tokens import Identity

router = APIRouter(tags=["logs"])

MEDIA_TYPE: Final = "text/plain; charset=utf-8"
_POSITIONS: Final = {
    "Longyard-Log-Attempt": "Whose log this is.",
    "Longyard-Log-Rank": "Whose log this is.",
    "Longyard-Log-Offset": "The byte of the raw log that the text begins with.",
    "Longyard-Log-End": "The byte after the last one; absent while following.",
}


class Selection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rank: int | None = Field(None, ge=0, le=1023, description="0 where it is left out, or the rank that failed.")
    attempt: int | None = Field(None, ge=1, le=2**31 - 1, description="The newest where it is left out.")
    tail: int | None = Field(None, ge=0, le=1_000_000, description="Only the last lines, of the last 8 MiB.")
    offset: int | None = Field(
        None, ge=0, le=2**53, description="From this byte on; one answer holds 8 MiB of the log."
    )
    grep: Line = Field("", max_length=256, description="Only lines of that range which contain this text.")
    follow: bool = Field(False, description="Keep the answer open until the job ends.")


@router.get(
    "/jobs/{job_id}/logs",
    response_class=PlainTextResponse,
    responses={
        200: {
            "headers": {name: {"schema": {"type": "integer"}, "description": text} for name, text in _POSITIONS.items()}
        },
        **documented("not_found", "invalid_request", "rate_limited"),
    },
)
def get_logs(
    job_id: JobId, query: Annotated[Selection, Query()], plane: CurrentPlane, caller: Caller
) -> StreamingResponse:
    """Text in UTF-8; control bytes but newline, tab and colour codes are replaced."""
    if query.tail is not None and query.offset is not None:
        message, fix = "cannot be given beside offset", "give one of the two"
        raise blame(
            "invalid_request", [schemas.FieldError(field="query.tail", code="inconsistent", message=message, fix=fix)]
        )
    with plane.database.read() as session:
        job = deps.visible_job(session, job_id, caller)
        attempt = _attempt(session, job, query)
        rank = _rank(job, attempt, query)
        span = _span(session, attempt, rank, query) if attempt else None
    if query.follow:
        return _follow(plane, caller, job, attempt, rank, span, query)
    if attempt is None or span is None:
        raise Problem("not_found", f"There is no log yet: the job is {job.status.value}.")
    headers = {**_headers(attempt.number, rank, span.start), "Longyard-Log-End": str(span.stop)}
    return StreamingResponse(
        rank_log.text_of(plane.database, span, query.grep or None), media_type=MEDIA_TYPE, headers=headers
    )


def _attempt(session: Session, job: Job, query: Selection) -> Attempt | None:
    """None where there is none yet."""
    if query.attempt is None:
        return attempts.newest(session, job.id)
    found = attempts.numbered(session, job.id, query.attempt)
    if found is None:
        raise Problem("not_found", f"The job has no attempt {query.attempt}; it has had {job.num_attempts}.")
    return found


def _rank(job: Job, attempt: Attempt | None, query: Selection) -> int:
    if query.rank is None:
        return (attempt.failing_rank if attempt else None) or 0
    if query.rank >= job.num_devices:
        raise Problem("not_found", f"The job has no rank {query.rank}; its ranks are 0 to {job.num_devices - 1}.")
    return query.rank


def _span(session: Session, attempt: Attempt, rank: int, query: Selection) -> Span:
    if query.tail is not None:
        return rank_log.last_lines(session, attempt, rank=rank, lines=query.tail)
    return rank_log.whole(session, attempt, rank=rank, offset=query.offset or 0)


def _follow(
    plane: Plane, caller: Identity, job: Job, attempt: Attempt | None, rank: int, span: Span | None, query: Selection
) -> StreamingResponse:
    plane.streams.check_room()
    number = attempt.number if attempt else job.num_attempts + 1
    offset = span.start if span else 0
    text = rank_log.follow(
        plane,
        caller,
        job.id,
        number=number,
        only=query.attempt is not None,
        rank=rank,
        offset=offset,
        needle=query.grep or None,
    )
    headers = {**_headers(number, rank, offset), "X-Accel-Buffering": "no"}
    return StreamingResponse(text, media_type=MEDIA_TYPE, headers=headers)


def _headers(number: int, rank: int, offset: int) -> dict[str, str]:
    return {"Longyard-Log-Attempt": str(number), "Longyard-Log-Rank": str(rank), "Longyard-Log-Offset": str(offset)}
