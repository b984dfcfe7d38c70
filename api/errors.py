"""Every error as `application/problem+json`, and the only place where an HTTP status stands beside an error.

Problem is what the API itself raises; the store's errors (`store.errors`), the framework's and the database's are mapped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from api import schemas, validation_errors
from store import errors as store

STATUS: Final[Mapping[str, int]] = {
    "invalid_host": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "illegal_transition": 409,
    "idempotency_conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "invalid_request": 422,
    "invalid_spec": 422,
    "rate_limited": 429,
    "internal": 500,
    "not_ready": 503,
    "database_unavailable": 503,
}

MEDIA_TYPE: Final = "application/problem+json"
DATABASE_ERRORS: Final = (OperationalError, InterfaceError, PoolTimeoutError)
RETRY_AFTER_S: Final = 2

_TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's; Python 3.11 has the older ones
_CODE_OF_STATUS: Final = {
    404: "not_found",
    405: "method_not_allowed",
    400: "invalid_request",
    413: "too_large",
    422: "invalid_request",
}
_CODE_OF_ERROR: Final[Sequence[tuple[type[store.LongyardError], str]]] = (
    (store.NotFound, "not_found"),
    (store.IllegalTransition, "illegal_transition"),
    (store.IdempotencyConflict, "idempotency_conflict"),
    (store.TooManyJobs, "rate_limited"),
    (store.Unauthenticated, "unauthenticated"),
    (store.PathRefused, "invalid_spec"),
)

log = structlog.get_logger("api.errors")


class Problem(Exception):
    """An answer that is an error. `detail` is for people; `errors` names the fields to blame."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[schemas.FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors, self.headers = code, detail, tuple(errors), dict(headers or {})

    @property
    def status(self) -> int:
        return STATUS[self.code]


def blame(code: str, errors: Sequence[schemas.FieldError], *, num_unlisted: int = 0) -> Problem:
    """A 422 about fields; its detail says the first of them in a sentence, and how many more there are."""
    first = errors[0]
    detail = f"{first.field}: {first.message}."
    if first.fix:
        detail += f" {first.fix[0].upper()}{first.fix[1:]}{'' if first.fix.endswith('?') else '.'}"
    if len(errors) > 1:
        detail += (
            f" ({len(errors) - 1} more in `errors`{f', and {num_unlisted:,} beyond them' if num_unlisted else ''}.)"
        )
    return Problem(code, detail, errors=errors)


def unavailable() -> Problem:
    return Problem(
        "database_unavailable",
        "The database is busy or away. Nothing was lost; try again in a moment.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def response(problem: Problem, *, request_id: str) -> Response:
    title = _TITLES.get(problem.status) or HTTPStatus(problem.status).phrase
    body = schemas.Problem(
        type="about:blank",
        title=title,
        status=problem.status,
        code=problem.code,
        detail=problem.detail,
        errors=list(problem.errors),
        request_id=request_id,
    )
    headers = dict(problem.headers)
    if problem.status == STATUS["unauthenticated"]:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="longyard"')
    return Response(body.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def of_exception(error: Exception) -> Problem | None:
    """The problem that an exception stands for; None for a bug."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, DATABASE_ERRORS):
        return unavailable()
    for kind, code in _CODE_OF_ERROR:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if code == "rate_limited" else None
            text = str(error)
            return Problem(code, f"{text[:1].upper()}{text[1:]}.", headers=headers)
    return None


def of_bug(error: Exception, *, request_id: str) -> Problem:
    log.error("a request failed", request_id=request_id, exc_info=error)
    return Problem("internal", "Something went wrong on our side; the server's log has it under this request_id.")


def install(app: FastAPI) -> None:
    """Give the app its handlers. What none of them knows is a bug, and `api.middleware` answers it."""
    kinds: tuple[type[Exception], ...] = (Problem, store.LongyardError, *DATABASE_ERRORS)
    for kind in kinds:
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """These problems for a route's `responses=`."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        known = by_status.setdefault(STATUS[code], {"description": "", "content": _PROBLEM_CONTENT})
        known["description"] = f"{known['description']}, {code}" if known["description"] else code
    return by_status


_PROBLEM_CONTENT: Final = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


async def _known(request: Request, error: Exception) -> Response:
    request_id: str = request.state.request_id
    if isinstance(error, DATABASE_ERRORS):
        log.warning(
            "the database did not answer",
            request_id=request_id,
            error=type(error).__name__,
            cause=str(error.__cause__ or ""),
        )
    return response(of_exception(error) or of_bug(error, request_id=request_id), request_id=request_id)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    told = validation_errors.of_request(found, _expected(request))
    problem = blame("invalid_request", told, num_unlisted=len(found) - len(told))
    return response(problem, request_id=request.state.request_id)


def _expected(request: Request) -> dict[str, type[BaseModel]]:
    """What the route takes as its body and as its query, where a model describes it."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return {}
    taken = {"body": route.dependant.body_params, "query": route.dependant.query_params}
    found = {place: one.field_info.annotation for place, params in taken.items() for one in params}
    return {place: kind for place, kind in found.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "internal")
    if error.status_code == HTTPStatus.BAD_REQUEST:
        # The framework's word for a body that is no JSON it can read: bad UTF-8, an integer of thousands of digits, nested too deep.
        field = schemas.FieldError(
            field="body", code="unreadable", message="is not JSON that can be read", fix="send one JSON object"
        )
        return response(blame(code, [field]), request_id=request.state.request_id)
    if code == "method_not_allowed":
        detail = f"{request.method} is not known here."
    elif code == "not_found":
        detail = "There is nothing here. GET /openapi.json lists what there is."
    else:
        detail = "The request could not be answered."
    return response(Problem(code, detail, headers=error.headers), request_id=request.state.request_id)
