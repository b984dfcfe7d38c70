"""Artifacts: what a job's attempts left to take, listed and sent. They are seen where the API and the host share the data directory."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request
from starlette.responses import FileResponse

from api import artifact_files, deps, schemas
from api.artifact_files import Artifact
from api.deps import Caller, CurrentPlane, JobId
from api.errors import Problem, documented
from api.state import Plane
from store import attempts
from store.tokens import Identity

router = APIRouter(tags=["artifacts"])

_ONE_RANGE: Final = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_TYPES: Final = {
    ".json": "application/json",
    ".stack": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}


@router.get("/jobs/{job_id}/artifacts", responses=documented("not_found"))
def list_artifacts(job_id: JobId, plane: CurrentPlane, caller: Caller) -> schemas.Artifacts:
    """The outputs of its attempts, and the errors and stacks of their ranks."""
    return schemas.Artifacts(
        data=[
            schemas.Artifact(
                path=one.path, attempt=one.attempt, kind=one.kind, bytes=one.num_bytes, modified_at=one.modified_at
            )
            for one in _found(job_id, plane, caller)
        ]
    )


@router.get(
    "/jobs/{job_id}/artifacts/{path:path}",
    response_class=FileResponse,
    responses={
        200: {"description": "The file.", "content": {"application/octet-stream": {}}},
        206: {"description": "The one range that was asked for.", "content": {"application/octet-stream": {}}},
        **documented("not_found", "range_not_satisfiable"),
    },
)
def get_artifact(
    job_id: JobId,
    path: Annotated[str, Path(description="As the list has it.")],
    request: Request,
    plane: CurrentPlane,
    caller: Caller,
) -> FileResponse:
    """One file, as a download. `Range` with one range is honoured, anything else in it is passed over."""
    found = next((one for one in _found(job_id, plane, caller) if one.path == path), None)
    if found is None:
        raise Problem("not_found", "The job has no such artifact.")
    _check_range(request, found)
    return FileResponse(
        found.file,
        media_type=_TYPES.get(found.file.suffix, "application/octet-stream"),
        filename=path.replace("/", "-"),
        headers={"Content-Security-Policy": "sandbox", "Cache-Control": "private, no-cache"},
    )


def _found(job_id: str, plane: Plane, caller: Identity) -> list[Artifact]:
    with plane.database.read() as session:
        deps.visible_job(session, job_id, caller)
        numbers = [one.number for one in attempts.of_job(session, job_id)]
    return [
        one for number in numbers for one in artifact_files.of_attempt(plane.settings.run_dir(job_id, number), number)
    ]


def _check_range(request: Request, found: Artifact) -> None:
    """Leave only a range that can be sent in the request: the framework answers others by plain text, or in many parts."""
    asked = request.headers.get("range")
    if asked is None:
        return
    match = _ONE_RANGE.fullmatch(asked)
    first, last = (match[1], match[2]) if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        headers: list[tuple[bytes, bytes]] = request.scope["headers"]
        request.scope["headers"] = [one for one in headers if one[0] != b"range"]
    elif (first and int(first) >= found.num_bytes) or (not first and int(last) == 0):
        raise Problem(
            "range_not_satisfiable",
            f"The file has {found.num_bytes} bytes.",
            headers={"Content-Range": f"bytes */{found.num_bytes}"},
        )
