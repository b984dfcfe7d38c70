"""/openapi.json: what the framework derives, and what it cannot know; /docs: the same as a plain page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from api import schemas
from api.errors import documented

DESCRIPTION: Final = "Submit Longformer training jobs, follow them, read their metrics and logs. Errors are problem+json; see docs/api.md."

_EVERYWHERE: Final = documented("invalid_host", "unauthenticated", "internal", "database_unavailable")
_OTHERWISE: Final = {"description": "Any other problem", "content": documented("internal")[500]["content"]}

_STREAMED: Final[list[type[BaseModel]]] = [
    schemas.Problem,
    schemas.MetricsMessage,
    schemas.LogMessage,
    schemas.Event,
    schemas.Job,
    schemas.Host,
]
"""Shapes that no route answers as JSON of its own: problems, and the data of stream messages."""


def describe(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
        components = document.setdefault("components", {})
        _, streamed = models_json_schema(
            [(model, "serialization") for model in _STREAMED], ref_template="#/components/schemas/{model}"
        )
        components["schemas"] = {**streamed["$defs"], **components.get("schemas", {})}
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "longyard_session"},
        }
        document["security"] = [{"token": []}, {"session": []}]
        for operation in _operations(document):
            _complete(operation)
        app.openapi_schema = document
    return app.openapi_schema


def page(document: dict[str, Any]) -> Response:
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description') or operation.get('summary', ''))}</td></tr>"
        for path, item in document["paths"].items()
        for method, operation in item.items()
    )
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>API · Longyard</title><h1>The HTTP API</h1>'
        '<p>Every field is described in <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<table>{rows}</table></html>"
    )
    return HTMLResponse(html)


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from item.values()


def _complete(operation: dict[str, Any]) -> None:
    """Problems any route may answer. The framework puts its own shape of a 422 wherever a route takes input; ours replaces it."""
    responses = operation["responses"]
    if "application/json" in responses.get("422", {}).get("content", {}):
        responses["422"] = documented("invalid_request")[422]
    for status, answer in _EVERYWHERE.items():
        responses.setdefault(str(status), answer)
    responses.setdefault("default", _OTHERWISE)
