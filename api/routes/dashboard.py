"""The dashboard's files under /ui/, and the plain page at /docs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api import openapi, static_files
from api.errors import Problem

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/ui")
def redirect_to_dashboard() -> Response:
    return RedirectResponse("/ui/", status_code=307)


@router.api_route("/ui/login", methods=["GET", "HEAD"])
def show_login() -> Response:
    return static_files.login_page()


@router.api_route("/ui/assets/{name}", methods=["GET", "HEAD"])
def get_asset(name: str) -> Response:
    found = static_files.asset(name)
    if found is None:
        raise Problem("not_found", "There is no such file in this build of the dashboard.")
    return found


@router.get("/ui/{path:path}")
def show_dashboard(path: str) -> Response:
    """Every page of the dashboard is the same document; its script reads the path."""
    return static_files.index_page()


@router.get("/docs")
def show_docs(request: Request) -> Response:
    return openapi.page(request.app.openapi())
