"""The app: its layers, its routes, its beginning and its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import errors, openapi
from api import state as planes
from api.auth import Guard
from api.middleware import Edge
from api.routes import artifacts, dashboard, health, hosts, jobs, login, logs, metrics, presets, streams
from api.routes.login import Throttle
from store.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Reads no environment and connects to nothing until the first request."""
    plane = planes.assemble(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await planes.close(plane)

    app = FastAPI(
        title="Longyard",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.plane, app.state.throttle = plane, Throttle()
    app.openapi = lambda: openapi.describe(app)  # pyright: ignore[reportAttributeAccessIssue]
    errors.install(app)
    for module in (jobs, artifacts, logs, metrics, streams, hosts, presets, login, health, dashboard):
        app.include_router(module.router)
    app.add_middleware(Guard, settings=settings, identities=plane.identities)
    app.add_middleware(Edge)
    _settle_routes(app)
    return app


def _settle_routes(app: FastAPI) -> None:
    """FastAPI works a route out when the first request comes by it: here, so that two servers of one process do not do it at once."""
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "/none", "root_path": ""})


def _operation_id(route: APIRoute) -> str:
    return route.name


def _version() -> str:
    try:
        return version("longyard")
    except PackageNotFoundError:
        return "0"
