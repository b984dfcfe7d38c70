"""Metrics as series for a chart, or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import deps, schemas, serializers
from api.deps import Caller, CurrentPlane, JobId
from api.errors import blame, documented
from api.schemas import Line
from store import metrics
from store.metrics import MAX_SERIES, Series

router = APIRouter(tags=["metrics"])


class Selection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: Line = Field("", max_length=8192, description="Separated by commas; all where it is left out.")
    from_step: int | None = Field(None, ge=0, le=2**53)
    to_step: int | None = Field(None, ge=0, le=2**53)
    max_points: int = Field(
        1000, ge=2, le=2000, description="Of one series; above it, buckets keep least and greatest."
    )
    format: Literal["json", "csv"] = "json"


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=schemas.Metrics,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "Series, as JSON or CSV"},
        **documented("not_found", "invalid_request"),
    },
)
def get_metrics(job_id: JobId, query: Annotated[Selection, Query()], plane: CurrentPlane, caller: Caller) -> Response:
    """One series a name and attempt. A resumed attempt repeats steps: draw, for each step, the newest attempt's point."""
    names = list(dict.fromkeys(name for name in query.names.split(",") if name))
    if len(names) > MAX_SERIES:
        message, fix = f"{len(names)} names are more than one answer holds", f"ask for at most {MAX_SERIES}"
        raise blame(
            "invalid_request", [schemas.FieldError(field="query.names", code="too_long", message=message, fix=fix)]
        )
    with plane.database.read() as session:
        cursor = deps.visible_job(session, job_id, caller).rev
        found, truncated = metrics.series(
            session,
            job_id,
            names=names or None,
            from_step=query.from_step,
            to_step=query.to_step,
            max_points=query.max_points,
        )
    if query.format == "csv":
        return Response(_csv(found), media_type="text/csv; charset=utf-8")
    body = {"series": [_series(one) for one in found], "truncated": truncated, "cursor": cursor}
    return Response(orjson.dumps(body), media_type="application/json")


def _series(series: Series) -> dict[str, object]:
    extent = series.extent or (None, None)
    points = [serializers.point(*point) for point in series.points]
    return {"name": series.name, "attempt": series.attempt, "points": points, "min": extent[0], "max": extent[1]}


def _csv(found: Sequence[Series]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "attempt", "step", "value", "at"])
    for series in found:
        rows.writerows(
            [series.name, series.attempt, step, flag or value, serializers.timestamp(at)]
            for step, value, at, flag in series.points
        )
    return text.getvalue()
