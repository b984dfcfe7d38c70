from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import httpx

from store import attempts, metrics
from store.db import Database
from store.metrics import Point
from store.models import Attempt

AT = datetime(2026, 11, 22, 15, 4, 5, 0, UTC)


def write(database: Database, attempt: Attempt, name: str, values: list[float]) -> None:
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        points = [Point(name, step, value, AT) for step, value in enumerate(values)]
        metrics.append(session, job, attempt_id=attempt.id, points=points)


def test_series_are_given_with_flags_and_extent(client: httpx.Client, running: Attempt, database: Database) -> None:
    write(database, running, "loss", [8.0, float("nan"), 2.0, float("-inf")])
    write(database, running, "lr", [0.1])
    body = client.get(f"/jobs/{running.job_id}/metrics").json()
    when = "2026-11-22T15:04:05Z"
    assert body["series"] == [
        {
            "name": "loss",
            "attempt": 1,
            "points": [[0, 8.0, when], [1, None, when, "nan"], [2, 2.0, when], [3, None, when, "-inf"]],
            "min": 2.0,
            "max": 8.0,
        },
        {"name": "lr", "attempt": 1, "points": [[0, 0.1, when]], "min": 0.1, "max": 0.1},
    ]
    assert body["truncated"] is False
    assert body["cursor"] == client.get(f"/jobs/{running.job_id}").json()["cursor"]


def test_names_and_steps_choose(client: httpx.Client, running: Attempt, database: Database) -> None:
    for name in ("loss", "lr", "grad_norm"):
        write(database, running, name, [float(step) for step in range(10)])
    query = {"names": "loss,lr,unknown", "from_step": 3, "to_step": 5}
    body = client.get(f"/jobs/{running.job_id}/metrics", params=query).json()
    assert [(one["name"], [point[0] for point in one["points"]]) for one in body["series"]] == [
        ("loss", [3, 4, 5]),
        ("lr", [3, 4, 5]),
    ]
    too_many = client.get(f"/jobs/{running.job_id}/metrics", params={"names": ",".join(f"n{one}" for one in range(51))})
    assert (too_many.status_code, too_many.json()["errors"][0]["field"]) == (422, "query.names")
    allowed = client.get(f"/jobs/{running.job_id}/metrics", params={"names": ",".join(f"n{one}" for one in range(50))})
    assert allowed.json()["series"] == []


def test_many_points_are_thinned_and_no_spike_is_lost(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    values = [1.0] * 5000
    values[1234], values[4321] = 99.0, -99.0
    write(database, running, "loss", values)
    url = f"/jobs/{running.job_id}/metrics"
    body = client.get(url, params={"max_points": 100}).json()
    (series,) = body["series"]
    assert body["truncated"] is True
    assert len(series["points"]) <= 100
    assert (series["min"], series["max"]) == (-99.0, 99.0)
    assert {(point[0], point[1]) for point in series["points"]} >= {(1234, 99.0), (4321, -99.0)}
    assert client.get(url, params={"max_points": 2000}).status_code == 200
    assert client.get(url, params={"max_points": 2001}).status_code == 422


def test_csv_has_a_row_a_point(client: httpx.Client, running: Attempt, database: Database) -> None:
    write(database, running, 'lo,"ss', [8.0, float("inf"), 0.0])
    answer = client.get(f"/jobs/{running.job_id}/metrics", params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["name", "attempt", "step", "value", "at"]
    assert [row[:4] for row in rows[1:]] == [
        ['lo,"ss', "1", "0", "8.0"],
        ['lo,"ss', "1", "1", "inf"],
        ['lo,"ss', "1", "2", "0.0"],
    ]
