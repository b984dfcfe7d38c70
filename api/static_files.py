"""The built dashboard's files: which there are, and the plain page that stands in until they are built."""

from __future__ import annotations

import mimetypes
from html import escape
from pathlib import Path
from typing import Final

from starlette.responses import HTMLResponse, Response

DIST: Final = Path(__file__).resolve().parent.parent / "web" / "dist"

_REVALIDATE: Final = {"Cache-Control": "no-cache"}
_FOREVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


def index_page() -> Response:
    return _page("index.html")


def login_page(*, status: int = 200) -> Response:
    return _page("login.html", status=status)


def asset(name: str) -> Response | None:
    """A file of the build, whose name has its hash; None where there is none. `name` is one path segment."""
    path = DIST / "assets" / name
    if "/" in name or name.startswith(".") or not path.is_file():
        return None
    # Whole, from memory: they are small, and byte ranges would be one more thing that a stranger can ask for.
    return Response(
        path.read_bytes(), headers=_FOREVER, media_type=mimetypes.guess_type(name)[0] or "application/octet-stream"
    )


def plain(title: str, *paragraphs: str, status: int = 200) -> Response:
    """A page without style or script: for when there is nothing better to show."""
    body = "".join(f"<p>{escape(text)}</p>" for text in paragraphs)
    head = f'<meta charset="utf-8"><title>{escape(title)} · Longyard</title>'
    html = f'<!doctype html><html lang="en">{head}<h1>{escape(title)}</h1>{body}</html>'
    return HTMLResponse(html, status, headers=_REVALIDATE)


def _page(name: str, *, status: int = 200) -> Response:
    path = DIST / name
    if path.is_file():
        return HTMLResponse(path.read_bytes(), status, headers=_REVALIDATE)
    return plain(
        "The dashboard is not built yet",
        "`./run up` builds it and starts everything. The API works without it.",
        status=status,
    )
