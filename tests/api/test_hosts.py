"""Hosts as they are shown, and as people take them and their devices out of use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from store import hosts, tokens
from store.db import Database
from store.models import Attempt
from store.pubsub import CHANNEL_HOSTS, Notifier
from tests.api.conftest import Running
from tests.api.sse import messages


def test_a_host_is_drained_and_taken_back(client: httpx.Client, host: str) -> None:
    drained = client.post("/hosts/a/drain")
    assert (drained.status_code, drained.json()["status"]) == (200, "draining")
    assert client.post("/hosts/a/drain").json()["drained_at"] == drained.json()["drained_at"] is not None
    assert client.get("/hosts").json()["data"][0]["status"] == "draining"
    back = client.post("/hosts/a/undrain").json()
    assert (back["status"], back["drained_at"]) == ("online", None)
    assert client.post("/hosts/a/undrain").status_code == 200


def test_a_device_is_cordoned_and_taken_back(client: httpx.Client, running: Attempt) -> None:
    def cordoned(answer: httpx.Response) -> list[bool]:
        assert answer.status_code == 200
        return [device["cordoned"] for device in answer.json()["devices"]]

    assert cordoned(client.post("/hosts/a/devices/1/cordon")) == [False, True, False, False]
    assert cordoned(client.post("/hosts/a/devices/1/cordon")) == [False, True, False, False]
    assert client.get(f"/jobs/{running.job_id}").json()["status"] == "running"
    assert cordoned(client.post("/hosts/a/devices/1/uncordon")) == [False] * 4


@pytest.mark.parametrize("path", ["/hosts/b/drain", "/hosts/b/undrain", "/hosts/a/devices/4/cordon"])
def test_what_is_not_there_is_404(client: httpx.Client, host: str, path: str) -> None:
    answer = client.post(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_host_that_is_not_there_is_told_and_not_its_device(client: httpx.Client, host: str) -> None:
    assert client.post("/hosts/b/devices/0/cordon").json()["detail"] == "No such host: b."
    assert client.post("/hosts/a/devices/9/cordon").json()["detail"] == "Host a has no device 9."


def test_only_an_admin_changes_hosts(client: httpx.Client, database: Database, host: str) -> None:
    with database.write() as session:
        secret = tokens.mint(session, kind="token", owner="ada", scope="user")
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/hosts", headers=headers).status_code == 200
    for path in ("drain", "undrain", "devices/0/cordon", "devices/0/uncordon"):
        answer = client.post(f"/hosts/a/{path}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    with database.read() as session:
        assert hosts.view(session, "a").host.drained_at is None


def test_a_change_is_shown_to_who_follows_and_tells_the_planner(
    server: Running, client: httpx.Client, host: str, valkey: str, eventually: Callable[..., object]
) -> None:
    notifier = Notifier(valkey)
    with client.stream("GET", "/stream") as response, notifier.subscribed(CHANNEL_HOSTS) as listener:
        got = messages(response)
        next(got)
        client.post("/hosts/a/drain")
        assert next(one.data["status"] for one in got if one.kind == "host") == "draining"

        def is_told() -> bool:
            message: Any = listener.get_message(timeout=0.1)
            return bool(message) and message["data"] == b"a"

        eventually(is_told)
    notifier.close()


def test_a_dry_run_says_that_the_host_is_drained(client: httpx.Client, host: str, spec: dict[str, Any]) -> None:
    client.post("/hosts/a/drain")
    wait = client.post("/jobs?dry_run=true", json=spec | {"num_devices": 2, "device_type": "cpu"}).json()["wait"]
    assert wait["reason"] == (
        "needs 2 free cpu devices on one host; a, which has 4, is drained: nothing new starts there"
    )
    assert (wait["is_promised"], wait["estimated_start_at"]) == (False, None)
