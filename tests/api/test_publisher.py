"""Who is told of a change, and that nobody waits where nobody can be told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import redis

from store.celery_app import QUEUE
from store.models import Attempt
from store.pubsub import CHANNEL_JOBS, channel_intent, channel_job
from store.settings import Settings
from tests.api.conftest import serving


def test_a_submission_asks_for_a_pass_and_a_cancel_wakes_the_supervisor(
    valkey: str, client: httpx.Client, spec: dict[str, Any], running: Attempt, eventually: Callable[..., object]
) -> None:
    with redis.Redis.from_url(valkey) as broker, broker.pubsub() as listener:
        listener.subscribe(CHANNEL_JOBS, channel_intent(running.job_id), channel_job(running.job_id))
        heard: set[tuple[str, str]] = set()

        def hear(*wanted: tuple[str, str]) -> bool:
            message: Any = listener.get_message(timeout=0.1)
            if message and message["type"] == "message":
                heard.add((message["channel"].decode(), message["data"].decode()))
            return heard >= set(wanted)

        job_id = client.post("/jobs", json=spec).json()["id"]
        eventually(lambda: hear((CHANNEL_JOBS, job_id)))
        eventually(lambda: broker.llen(QUEUE) >= 1)
        client.post(f"/jobs/{running.job_id}/cancel")
        names = (channel_intent(running.job_id), channel_job(running.job_id), CHANNEL_JOBS)
        eventually(lambda: hear(*((name, running.job_id) for name in names)))


def test_without_a_broker_answers_come_as_fast(client: httpx.Client, spec: dict[str, Any]) -> None:
    client.post("/jobs", json=spec)
    started = time.monotonic()
    for _ in range(10):
        assert client.post("/jobs", json=spec).status_code == 201
    assert time.monotonic() - started < 5


def test_without_a_database_everything_but_life_is_503(tmp_path: Path) -> None:
    url = "postgresql+psycopg://nobody:hidden@127.0.0.1:1/none"
    with (
        serving(Settings(data_dir=tmp_path, database_url=url, shutdown_grace_s=1)) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": "Bearer any"}, timeout=20) as client,
    ):
        assert client.get("/healthz").status_code == 200
        for path in ("/jobs", "/readyz", "/stream"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert "hidden" not in answer.text
            assert "127.0.0.1" not in answer.text
