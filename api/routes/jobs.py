"""Jobs: submit, list, read, cancel, pause, resume, retry, and what has happened to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.orm import Session

from api import deps, schemas, serializers
from api.deps import Caller, CurrentPlane, JobId
from api.errors import Problem, documented
from api.schemas import Line
from api.state import Plane
from api.submission import estimate, validation
from store import attempts, checkpoints, events, jobs, models
from store.hosts import HostView
from store.jobs import NewJob, Submission
from store.states import JobStatus
from store.tokens import Identity
from trainer.spec.config import TrainConfig

router = APIRouter(tags=["jobs"])

Blank = BeforeValidator(lambda value: None if value == "" else value)
"""`?status=` with nothing behind it is as good as left out."""

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=schemas.KEY,
        description="The same key and body again give the same job.",
    ),
]


class Asking(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Only say what would happen.")


class Selection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Annotated[JobStatus | None, Blank] = None
    owner: Annotated[Line | None, Blank] = Field(None, max_length=128)
    label: list[Annotated[str, Field(pattern=schemas.LABELLED)]] = Field(
        default_factory=list, max_length=schemas.MAX_LABELS, description="`key=value`; several must all hold."
    )
    q: Annotated[Line | None, Blank] = Field(None, max_length=128, description="Part of the name or the id.")
    limit: int = Field(50, ge=1, le=1000)
    after: Annotated[Line | None, Blank] = Field(None, max_length=64, description="`next` of the page before.")


class EventSelection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: Annotated[int, BeforeValidator(lambda value: 0 if value == "" else value)] = Field(
        0, ge=0, le=2**53, description="A `seq`."
    )
    limit: int = Field(100, ge=1, le=1000)


@router.post(
    "/jobs",
    status_code=201,
    response_model=schemas.Job,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        200: {
            "description": "A dry run, or the job of an earlier request with this key",
            "model": schemas.Job | schemas.DryRun,
        },
        **documented(
            "idempotency_conflict",
            "invalid_spec",
            "invalid_request",
            "too_large",
            "unsupported_media_type",
            "rate_limited",
        ),
    },
)
async def submit_job(
    spec: schemas.JobSpec,
    query: Annotated[Asking, Query()],
    plane: CurrentPlane,
    caller: Caller,
    idempotency_key: Key = None,
) -> Any:
    """Queue a training job: a preset and what differs from it."""
    # A coroutine, so that no thread waits for the writer: 32 that do, woken together by one commit, cost more than the commit.
    if query.dry_run:
        return _json(await run_in_threadpool(_rehearse, spec, plane, caller), status=200)
    digest = ""
    if idempotency_key is not None:
        digest = validation.digest(spec)
        # Asked before the spec is checked: what made a job once gives it again, though its files may be gone by now.
        earlier = await run_in_threadpool(_earlier, plane, caller, idempotency_key, digest)
        if earlier is not None:
            return _json(earlier, status=200, replay=True)
    new, _, known_hosts = await run_in_threadpool(_checked, spec, plane, caller)
    row, replayed = await plane.writer.submit(Submission(new, caller.owner, idempotency_key, digest))
    if replayed:
        return _json(await run_in_threadpool(_shown, plane, row), status=200, replay=True)
    return _json(serializers.fresh(row, no_hosts=not known_hosts), status=201)


@router.get("/jobs", responses=documented("invalid_request"))
def list_jobs(query: Annotated[Selection, Query()], plane: CurrentPlane, caller: Caller) -> schemas.JobPage:
    """Newest first."""
    labels = dict(label.split("=", 1) for label in query.label)
    with plane.database.read() as session:
        page = jobs.page(
            session,
            owner=deps.owner_filter(caller) or query.owner,
            status=query.status,
            labels=labels,
            text=query.q,
            after=query.after,
            limit=query.limit,
        )
        return schemas.JobPage(
            data=serializers.many(session, page.rows), has_more=page.next is not None, next=page.next
        )


@router.get(
    "/jobs/{job_id}",
    response_model=schemas.Job,
    responses={304: {"description": "It is as `If-None-Match` says."}, **documented("not_found")},
)
def get_job(
    job_id: JobId,
    plane: CurrentPlane,
    caller: Caller,
    if_none_match: Annotated[str | None, Header(max_length=1024)] = None,
) -> Any:
    with plane.database.read() as session:
        row = deps.visible_job(session, job_id, caller)
        tag = f'W/"{row.rev}"'
        if if_none_match is not None and tag in [one.strip() for one in if_none_match.split(",")]:
            return Response(status_code=304, headers={"ETag": tag})
        return _json(
            serializers.one(session, row), status=200, headers={"ETag": tag, "Cache-Control": "private, no-cache"}
        )


_ASK: Final[Any] = {"status_code": 202, "responses": documented("not_found", "illegal_transition")}


@router.post("/jobs/{job_id}/cancel", **_ASK)
def cancel_job(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Job:
    """Ask for its end: at once while it is queued; else its processes get time to stop. Again is no error."""
    return _ask(jobs.cancel, job_id, plane, caller)


@router.post("/jobs/{job_id}/pause", **_ASK)
def pause_job(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Job:
    """Keep it from running until it is resumed; one that runs writes a checkpoint first. Again is no error."""
    return _ask(jobs.pause, job_id, plane, caller)


@router.post("/jobs/{job_id}/resume", **_ASK)
def resume_job(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Job:
    """Take a pause back: it goes on from its last checkpoint. Again is no error."""
    return _ask(jobs.resume, job_id, plane, caller)


@router.post("/jobs/{job_id}/retry", **_ASK)
def retry_job(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Job:
    """Queue one that failed or was cancelled again, from its last checkpoint. Again is no error."""
    return _ask(jobs.retry, job_id, plane, caller)


@router.get("/jobs/{job_id}/attempts", responses=documented("not_found"))
def list_attempts(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Attempts:
    """Oldest first."""
    with plane.database.read() as session:
        deps.visible_job(session, job_id, caller)
        return schemas.Attempts(data=[serializers.attempt(row) for row in attempts.of_job(session, job_id)])


@router.get("/jobs/{job_id}/events", responses=documented("not_found", "invalid_request"))
def list_events(
    job_id: JobId, query: Annotated[EventSelection, Query()], plane: CurrentPlane, caller: Caller
) -> schemas.EventPage:
    """What has happened to it, oldest first."""
    with plane.database.read() as session:
        deps.visible_job(session, job_id, caller)
        rows = events.page(session, job_id, after=query.after, limit=query.limit + 1)
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return schemas.EventPage(
        data=[serializers.event(row) for row in rows], has_more=more, next=str(rows[-1].seq) if more else None
    )


@router.get("/jobs/{job_id}/checkpoints", responses=documented("not_found"))
def list_checkpoints(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Checkpoints:
    """Oldest first."""
    with plane.database.read() as session:
        deps.visible_job(session, job_id, caller)
        return schemas.Checkpoints(
            data=[serializers.checkpoint(number, row) for number, row in checkpoints.of_job(session, job_id)]
        )


def _ask(ask: Callable[[Session, str], models.Job], job_id: str, plane: Plane, caller: Identity) -> schemas.Job:
    with plane.database.write() as session:
        deps.visible_job(session, job_id, caller)
        row = ask(session, job_id)
        session.flush()
        answer = serializers.one(session, row)
    plane.hints.asked(job_id)
    return answer


def _rehearse(spec: schemas.JobSpec, plane: Plane, caller: Identity) -> schemas.DryRun:
    new, train, known_hosts = _checked(spec, plane, caller)
    with plane.database.read() as session:
        found = validation.verdict(session, new, owner=caller.owner, settings=plane.settings)
    device_type = validation.device_type_at(new, found, known_hosts)
    return serializers.dry_run(new, found, estimate.of(train, num_devices=new.num_devices, device_type=device_type))


def _checked(spec: schemas.JobSpec, plane: Plane, caller: Identity) -> tuple[NewJob, TrainConfig, Sequence[HostView]]:
    """The whole spec, and the hosts it was held against: those of a moment ago may accept it, only those of now refuse it."""
    new, train = validation.resolve(spec)
    known_hosts = plane.known_hosts.recently()
    try:
        validation.check(new, train, owner=caller.owner, known_hosts=known_hosts, settings=plane.settings)
    except Problem:
        known_hosts = plane.known_hosts.now()
        validation.check(new, train, owner=caller.owner, known_hosts=known_hosts, settings=plane.settings)
    return new, train, known_hosts


def _earlier(plane: CurrentPlane, caller: Caller, key: str, digest: str) -> schemas.Job | None:
    with plane.database.read() as session:
        row = jobs.replayed(session, owner=caller.owner, idempotency_key=key, request_sha256=digest)
        return serializers.one(session, row) if row is not None else None


def _shown(plane: Plane, row: models.Job) -> schemas.Job:
    with plane.database.read() as session:
        return serializers.one(session, row)


def _json(body: BaseModel, *, status: int, replay: bool = False, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if isinstance(body, schemas.Job) and "ETag" not in headers:
        headers["Location"] = f"/jobs/{body.id}"
    if replay:
        headers["Idempotent-Replay"] = "true"
    return Response(body.model_dump_json(), status, headers, "application/json")
