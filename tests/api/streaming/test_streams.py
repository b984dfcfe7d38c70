from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from api.streaming import connections as streams
from api.streaming.fanout import JobFeeds
from store import attempts, events, hosts, logs, metrics, tokens
from store.db import Database
from store.metrics import Point
from store.models import Attempt
from store.pubsub import Notifier
from store.states import ExitReason
from tests.api.conftest import Running
from tests.api.sse import Message, messages

Submit = Callable[..., str]

TEXT = "step 1: Verlust 3,25 €\n\x1b[31mrot\x1b[0m … 日本語 🙂\n" * 40


def write(
    database: Database, attempt: Attempt, *, log: bytes = b"", rank: int = 0, points: int = 0, step: int = 0
) -> None:
    """One transaction of a supervisor."""
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        if log:
            offset = logs.ends(session, attempt.id).get(rank, 0)
            logs.append(session, job, attempt_id=attempt.id, rank=rank, offset=offset, data=log)
        if points:
            at = datetime.now(UTC)
            batch = [Point(name, step + one, float(step + one), at) for one in range(points) for name in ("loss", "lr")]
            metrics.append(session, job, attempt_id=attempt.id, points=batch)
        if step % 3 == 1:
            events.append(session, job, kind="note", step=step)


def close(database: Database, attempt: Attempt, reason: ExitReason = ExitReason.COMPLETED) -> None:
    with database.write() as session:
        attempts.close(
            session, attempt.id, job_id=attempt.job_id, reason=reason, message=None, result={}, devices_clean=True
        )


def read_until_end(client: httpx.Client, job_id: str, after: str = "0") -> list[Message]:
    with client.stream("GET", f"/jobs/{job_id}/stream", params={"after": after}) as response:
        return list(messages(response))


def test_what_clients_got_over_random_disconnects_is_the_database(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    data = {0: TEXT.encode(), 1: TEXT.encode()[::-1]}

    def train() -> None:
        ends, step = {0: 0, 1: 0}, 0
        while any(ends[rank] < len(data[rank]) for rank in data):
            for rank in data:
                piece = data[rank][ends[rank] : ends[rank] + chance.randrange(1, 60)]
                ends[rank] += len(piece)
                write(database, running, log=piece, rank=rank, points=chance.randrange(3), step=step)
                step += 3 if step % 3 == 0 else 1
        close(database, running)

    trainer = threading.Thread(target=train)
    trainer.start()
    got: list[Message] = []
    last, ended, connections = "", False, 0
    while not ended:
        connections += 1
        quota = chance.randrange(1, 40)
        headers = {"Last-Event-ID": last} if last else {}
        with client.stream("GET", f"/jobs/{running.job_id}/stream", headers=headers) as response:
            for message in messages(response):
                got.append(message)
                last = message.id or last
                ended = message.kind == "end"
                quota -= 1
                if ended or quota == 0:
                    break
    trainer.join()
    assert connections > 5
    assert {rank: text_of(got, rank) for rank in data} == {
        0: TEXT,
        1: "".join(
            char if (ord(char) >= 32 and not 127 <= ord(char) < 160) or char in "\n\t" else "\ufffd"
            for char in data[1].decode("utf-8", "replace")
        ),
    }
    with database.read() as session:
        stored = {
            (point.name, point.step) for _, point in metrics.since(session, running.job_id, after_rev=0, limit=9999)
        }
        facts = [event.seq for event in events.page(session, running.job_id, limit=9999)]
    points = Counter(
        (name, point[0])
        for one in got
        if one.kind == "metrics"
        for name, series in one.data["series"].items()
        for point in series
    )
    assert points == Counter(stored)
    assert Counter(one.data["seq"] for one in got if one.kind == "event") == Counter(facts)
    assert [one.data["status"] for one in got if one.kind == "job"][-1] == "succeeded"


def text_of(got: list[Message], rank: int) -> str:
    """The log, from messages that must neither overlap nor leave a gap."""
    text, end = "", 0
    for message in got:
        if message.kind == "log" and message.data["rank"] == rank:
            assert message.data["offset"] == end, "a byte range came twice, or one is missing"
            text, end = text + message.data["text"], message.data["end"]
    return text


def test_a_job_that_has_ended_is_sent_and_ended_at_once(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    write(database, running, log=b"hello\n", points=1)
    close(database, running)
    everything = read_until_end(client, running.job_id)
    assert [one.kind for one in everything][-2:] == ["job", "end"]
    cursor = client.get(f"/jobs/{running.job_id}").json()["cursor"]
    assert everything[-1].id == str(cursor)
    assert [(one.kind, one.data) for one in read_until_end(client, running.job_id, after=str(cursor))] == [("end", {})]
    assert read_until_end(client, running.job_id, after=str(cursor + 1000)) == everything, "a cursor from another life"


def test_following_from_a_jobs_cursor_gives_what_comes_after(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    write(database, running, log=b"before\n", points=1, step=1)
    cursor = client.get(f"/jobs/{running.job_id}").json()["cursor"]
    write(database, running, log=b"after\n", points=1, step=2)
    close(database, running)
    got = read_until_end(client, running.job_id, after=str(cursor))
    (log,) = [one.data for one in got if one.kind == "log"]
    assert log == {"attempt": 1, "rank": 0, "offset": 7, "end": 13, "text": "after\n"}
    (points,) = [one.data for one in got if one.kind == "metrics"]
    assert points["attempt"] == 1
    assert {name: [point[:2] for point in series] for name, series in points["series"].items()} == {
        "loss": [[2, 2.0]],
        "lr": [[2, 2.0]],
    }


def test_numbers_that_json_lacks_are_null_with_a_flag(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    at = datetime(2026, 11, 22, 15, 4, 5, 120000, UTC)
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id)
        values = [float("nan"), float("inf"), float("-inf"), 1.5]
        batch = [Point("loss", step, value, at) for step, value in enumerate(values)]
        metrics.append(session, job, attempt_id=running.id, points=batch)
    close(database, running)
    (message,) = [one for one in read_until_end(client, running.job_id) if one.kind == "metrics"]
    when = "2026-11-22T15:04:05.120000Z"
    points = [[0, None, when, "nan"], [1, None, when, "inf"], [2, None, when, "-inf"], [3, 1.5, when]]
    assert message.data["series"] == {"loss": points}


def test_what_is_no_cursor_is_refused(client: httpx.Client, running: Attempt) -> None:
    for text in ("x", "-1", "1-", "1-2-3", "9" * 19):
        for params, headers in (({"after": text}, {}), ({}, {"Last-Event-ID": text})):
            answer = client.get(f"/jobs/{running.job_id}/stream", params=params, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] in ("query.after", "header.Last-Event-ID")


def test_a_wake_up_is_seen_long_before_the_poll(
    client: httpx.Client,
    server: Running,
    valkey: str,
    running: Attempt,
    database: Database,
    eventually: Callable[..., object],
) -> None:
    notifier = Notifier(valkey)
    with client.stream("GET", f"/jobs/{running.job_id}/stream", params={"after": current(client, running)}) as response:
        got = messages(response)
        eventually(lambda: server.plane.hub.poll_s > 2)  # the subscription stands
        delays: list[float] = []
        for number in range(5):
            write(database, running, log=b"line\n", step=number * 3)
            written = time.monotonic()
            notifier.publish_job(running.job_id)
            next(one for one in got if one.kind == "job")
            delays.append(time.monotonic() - written)
        assert sorted(delays)[2] < 1.0, delays
    notifier.close()


def test_every_job_and_host_that_changes_is_shown(
    client: httpx.Client, database: Database, submit: Submit, start: Callable[[str], Attempt]
) -> None:
    old = submit("old")
    with client.stream("GET", "/stream") as response:
        got = messages(response)
        assert next(got) == Message("reset", {}, "")
        job_id = submit("new")
        assert next(one.data["id"] for one in got if one.kind == "job") == job_id
        attempt = start(old)
        seen = {one.kind: one.data for _, one in zip(range(2), got, strict=False)}
        assert (seen["job"]["id"], seen["job"]["status"]) == (old, "running")
        assert [device["state"] for device in seen["host"]["devices"]] == ["held", "held", "free", "free"]
        with database.write() as session:
            hosts.beat(session, "a")  # no change worth a message
        close(database, attempt)
        shown = [one for _, one in zip(range(2), got, strict=False)]
        assert sorted(one.kind for one in shown) == ["host", "job"]
        assert next(one.data["status"] for one in shown if one.kind == "job") == "succeeded"


def test_more_streams_than_the_limit_are_told_to_wait(client: httpx.Client, server: Running, submit: Submit) -> None:
    server.plane.streams.limit = 1
    with client.stream("GET", "/stream") as response:
        got = messages(response)
        next(got)
        for path in ("/stream", f"/jobs/{submit()}/stream"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert int(answer.headers["retry-after"]) > 0
    assert client.get("/jobs").status_code == 200


def test_a_revoked_token_loses_its_streams_within_seconds(server: Running, database: Database) -> None:
    with database.write() as session:
        secret = tokens.mint(session, kind="token", owner="admin", scope="admin")
        digest = tokens.verify(session, secret, kind="token").token_sha256
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {secret}"}) as theirs:
        with theirs.stream("GET", "/stream", timeout=10) as response:
            got = messages(response)
            next(got)
            with database.write() as session:
                tokens.revoke(session, digest)
            assert list(got) == []
        assert theirs.get("/jobs").status_code == 401


def test_a_reader_that_fails_ends_its_streams_and_the_next_ones_work(
    client: httpx.Client, running: Attempt, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    after = current(client, running)
    with (
        client.stream("GET", "/stream") as all_jobs,
        client.stream("GET", f"/jobs/{running.job_id}/stream", params={"after": after}) as one_job,
    ):
        got, got_one = messages(all_jobs), messages(one_job)
        assert next(got).kind == "reset"
        write(database, running, log=b"first\n")
        assert [next(got_one).kind, next(got_one).kind, next(got).kind] == ["log", "job", "job"]
        monkeypatch.setattr("api.serializers.many", broken)
        write(database, running, log=b"line\n")
        assert list(got) == []
        assert list(got_one) == []
    monkeypatch.undo()
    close(database, running)
    assert read_until_end(client, running.job_id, after=after)[-1].kind == "end"
    with client.stream("GET", "/stream") as response:
        assert next(messages(response)).kind == "reset"


def test_a_change_between_two_looks_does_not_wait_for_the_next_one(
    client: httpx.Client, running: Attempt, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower has looked, the job's reader has not begun yet: what is committed then is still told."""
    may_begin, begin = threading.Event(), JobFeeds._rev

    def late(feeds: JobFeeds, job_id: str) -> int:
        assert may_begin.wait(30)
        return begin(feeds, job_id)

    monkeypatch.setattr(JobFeeds, "_rev", late)
    after = current(client, running)
    write(database, running, log=b"first\n")
    with client.stream("GET", f"/jobs/{running.job_id}/stream", params={"after": after}) as response:
        got = messages(response)
        assert [next(got).kind, next(got).kind] == ["log", "job"]
        write(database, running, log=b"second\n")
        may_begin.set()
        assert next(got).kind == "log"


def test_open_streams_end_at_once_when_the_server_stops(client: httpx.Client, server: Running, submit: Submit) -> None:
    job_id = submit()
    with (
        client.stream("GET", "/stream") as all_jobs,
        client.stream("GET", f"/jobs/{job_id}/stream") as one_job,
        client.stream("GET", f"/jobs/{job_id}/logs", params={"follow": True}) as log,
    ):
        got = messages(all_jobs)
        next(got)
        started = time.monotonic()
        server.stop()
        assert list(got) == []
        assert "end" not in [one.kind for one in messages(one_job)], "the job goes on"
        assert log.read() == b""
        assert time.monotonic() - started < 3


def test_clients_that_do_not_read_are_dropped_and_the_others_get_everything(
    client: httpx.Client, server: Running, token: str, running: Attempt, database: Database, eventually: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(streams, "MAX_WAITING_BYTES", 1 << 20)
    after = current(client, running)
    path = f"/jobs/{running.job_id}/stream?after={after}"
    stuck = [open_without_reading(server, path, token) for _ in range(5)]
    with client.stream("GET", path) as response:
        got = messages(response)
        eventually(lambda: server.plane.streams.num_open == 6)

        def train() -> None:
            for number in range(200):
                write(database, running, log=b"%6d " % number + b"x" * 65_000 + b"\n")
            close(database, running)

        trainer = threading.Thread(target=train)
        trainer.start()
        text = text_of(list(got), rank=0)
        trainer.join()
    assert [line[:6] for line in text.splitlines()] == [f"{number:6d}" for number in range(200)]
    eventually(lambda: server.plane.streams.num_open == 0)
    for connection in stuck:
        connection.close()


def open_without_reading(server: Running, path: str, token: str) -> socket.socket:
    address = httpx.URL(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.host, address.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return connection


def current(client: httpx.Client, attempt: Attempt) -> str:
    return str(client.get(f"/jobs/{attempt.job_id}").json()["cursor"])
