"""`docker-compose.yml` as compose itself reads it; nothing is started."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = Path(sys.executable).parent / "docker-compose"
OURS = ("api", "worker")
DATA_DIR = "/var/lib/longyard"

Json = dict[str, Any]


@pytest.fixture
def services() -> dict[str, Json]:
    return read()


def test_all_of_ours_share_one_data_directory(services: dict[str, Json]) -> None:
    """The API lists and sends the files that workers write, at the paths that workers wrote down."""
    assert {name for name in services if mounted(services[name], DATA_DIR)} == set(OURS)
    assert {mounted(services[name], DATA_DIR) for name in OURS} == {("volume", "data")}


def test_the_port_that_is_published_is_the_one_that_the_login_link_names() -> None:
    """`longyard login` in the container can only name the port that the API there listens on."""
    api = read(LONGYARD_PUBLISH_PORT="9001")["api"]
    assert [(one["host_ip"], one["published"], one["target"]) for one in api["ports"]] == [("127.0.0.1", "9001", 9001)]
    assert api["environment"]["LONGYARD_PORT"] == "9001"
    assert "//127.0.0.1:9001/" in " ".join(api["healthcheck"]["test"])


def test_the_operator_may_let_trainers_onto_the_network(services: dict[str, Json]) -> None:
    """The API refuses hub names or not, the worker fetches or not: both read it."""
    allowing = read(LONGYARD_ALLOW_NETWORK="true")
    for name in OURS:
        assert services[name]["environment"]["LONGYARD_ALLOW_NETWORK"] == "false"
        assert allowing[name]["environment"]["LONGYARD_ALLOW_NETWORK"] == "true"


def read(**environment: str) -> dict[str, Json]:
    passwords = {"LONGYARD_POSTGRES_PASSWORD": "unused", "LONGYARD_REDIS_PASSWORD": "unused"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    command = [str(COMPOSE), "--env-file", os.devnull, "config", "--format", "json"]
    asked = subprocess.run(
        command, cwd=ROOT, env={**kept, **passwords, **environment}, capture_output=True, timeout=60, check=True
    )
    return json.loads(asked.stdout)["services"]


def mounted(service: Json, target: str) -> tuple[str, str] | None:
    return next(((one["type"], one["source"]) for one in service.get("volumes", []) if one["target"] == target), None)
