from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from store import jobs, tokens
from store.db import Database
from store.jobs import NewJob
from store.models import Attempt
from store.settings import Settings

SECRET = b"not yours"


@pytest.fixture
def run_dir(settings: Settings, running: Attempt) -> Path:
    directory = settings.run_dir(running.job_id, 1)
    (directory / "output" / "nested").mkdir(parents=True)
    (directory / "output" / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (directory / "output" / "nested" / "a b.txt").write_text("deep")
    (directory / "r0.stack").write_text("Thread 0x1 (most recent call first):\n")
    (directory / "r1.stack").touch()
    (directory / "r1.error.json").write_text("{}")
    (directory / "plog" / "debug" / "plog").mkdir(parents=True)
    (directory / "plog" / "debug" / "plog" / "plog-7_20260101.log").write_text("[ERROR] EI0006\n")
    (directory / "config.json").write_bytes(SECRET)
    (directory / "supervisor.log").write_bytes(SECRET)
    return directory


def test_what_there_is_to_take(client: httpx.Client, running: Attempt, run_dir: Path) -> None:
    found = client.get(f"/jobs/{running.job_id}/artifacts").json()["data"]
    assert [(one["path"], one["kind"], one["bytes"], one["attempt"]) for one in found] == [
        ("a1/output/model.safetensors", "output", 256_000, 1),
        ("a1/output/nested/a b.txt", "output", 4, 1),
        ("a1/plog/debug/plog/plog-7_20260101.log", "plog", 15, 1),
        ("a1/r0.stack", "stack", 37, 1),
        ("a1/r1.error.json", "error", 2, 1),
    ]
    for one in found:
        answer = client.get(f"/jobs/{running.job_id}/artifacts/{one['path']}")
        assert answer.content == (run_dir.parent / one["path"]).read_bytes()
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-security-policy"] == "sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_job_without_any(client: httpx.Client, submit: Callable[..., str]) -> None:
    assert client.get(f"/jobs/{submit()}/artifacts").json() == {"data": []}


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=255990-", 206, 255_990, 255_999),
        ("bytes=-10", 206, 255_990, 255_999),
        ("bytes=100-99999999", 206, 100, 255_999),
        ("bytes=0-1,5-6", 200, 0, 255_999),
        ("bytes=" + ",".join("0-" for _ in range(5000)), 200, 0, 255_999),
        ("bytes=9-1", 200, 0, 255_999),
        ("lines=1-2", 200, 0, 255_999),
        ("bytes=256000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(
    client: httpx.Client, running: Attempt, run_dir: Path, asked: str, status: int, first: int, last: int
) -> None:
    url = f"/jobs/{running.job_id}/artifacts/a1/output/model.safetensors"
    answer = client.get(url, headers={"Range": asked})
    assert answer.status_code == status
    if status == 416:
        assert (answer.json()["code"], answer.headers["content-range"]) == ("range_not_satisfiable", "bytes */256000")
    else:
        assert answer.content == (run_dir / "output" / "model.safetensors").read_bytes()[first : last + 1]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/256000"


@pytest.mark.parametrize(
    "path",
    [
        *("a1/config.json", "a1/supervisor.log", "a1/r1.stack", "a1/output", "a1", "", "a2/r0.stack", "token"),
        *("a1/output/../config.json", "a1/output/%2e%2e/config.json", "a1/output/..%2fconfig.json", "../../token"),
        *("a1/output/nested/link", "a1/output/linked/token", "a1/output/pipe", "a1//r0.stack", "a1/r0.stack/"),
        *("%2fetc/passwd", "a1/output/model.safetensors%00", "a1\\r0.stack", "a1/output/" + "x" * 5000),
    ],
)
def test_nothing_else_is_sent(
    client: httpx.Client, running: Attempt, run_dir: Path, settings: Settings, path: str
) -> None:
    (run_dir / "output" / "nested" / "link").symlink_to(settings.token_file)
    (run_dir / "output" / "linked").symlink_to(settings.data_dir)
    os.mkfifo(run_dir / "output" / "pipe")
    listed = [one["path"] for one in client.get(f"/jobs/{running.job_id}/artifacts").json()["data"]]
    assert len(listed) == 5
    answer = client.get(f"/jobs/{running.job_id}/artifacts/{path}" if path else f"/jobs/{running.job_id}/artifacts/")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    assert SECRET not in answer.content


def test_an_output_that_is_a_link_is_nobodys(client: httpx.Client, running: Attempt, settings: Settings) -> None:
    directory = settings.run_dir(running.job_id, 1)
    directory.mkdir(parents=True)
    (directory / "output").symlink_to(settings.data_dir)
    assert client.get(f"/jobs/{running.job_id}/artifacts").json() == {"data": []}


def test_somebody_elses_are_not_there(client: httpx.Client, database: Database, settings: Settings) -> None:
    with database.write() as session:
        job_id = jobs.submit(session, NewJob("other", "demo", {}, 1, "cpu"), owner="other")[0].id
        secret = tokens.mint(session, kind="token", owner="someone", scope="user")
    headers = {"Authorization": f"Bearer {secret}"}
    for url in (f"/jobs/{job_id}/artifacts", f"/jobs/{job_id}/artifacts/a1/r0.stack"):
        assert client.get(url, headers=headers).status_code == 404
