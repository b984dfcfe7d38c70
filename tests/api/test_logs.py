from __future__ import annotations

import threading
from collections.abc import Callable

import httpx

from api.streaming import rank_log
from store import attempts, logs
from store.db import Database
from store.models import Attempt
from store.states import ExitReason
from tests.api.conftest import Running

Submit = Callable[..., str]


def write(database: Database, attempt: Attempt, *pieces: bytes, rank: int = 0) -> None:
    for piece in pieces:
        with database.write() as session:
            job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
            offset = logs.ends(session, attempt.id).get(rank, 0)
            logs.append(session, job, attempt_id=attempt.id, rank=rank, offset=offset, data=piece)


def close(database: Database, attempt: Attempt, reason: ExitReason, *, failing_rank: int | None = None) -> None:
    with database.write() as session:
        attempts.close(
            session,
            attempt.id,
            job_id=attempt.job_id,
            reason=reason,
            message=None,
            failing_rank=failing_rank,
            devices_clean=True,
        )


def position(answer: httpx.Response) -> dict[str, int]:
    names = ("attempt", "rank", "offset", "end")
    return {
        name: int(answer.headers[f"longyard-log-{name}"]) for name in names if f"longyard-log-{name}" in answer.headers
    }


def test_a_log_is_its_text_with_its_place(client: httpx.Client, running: Attempt, database: Database) -> None:
    write(database, running, "naïve €".encode()[:9], "naïve €\n".encode()[9:], b"two\n")
    answer = client.get(f"/jobs/{running.job_id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "naïve €\ntwo\n"
    assert position(answer) == {"attempt": 1, "rank": 0, "offset": 0, "end": 15}
    rest = client.get(f"/jobs/{running.job_id}/logs", params={"offset": 11})
    assert (rest.text, position(rest)["offset"], position(rest)["end"]) == ("two\n", 11, 15)
    past = client.get(f"/jobs/{running.job_id}/logs", params={"offset": 99})
    assert (past.text, position(past)["offset"]) == ("", 15)


def test_what_could_move_a_terminal_is_replaced_and_colours_stay(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    write(database, running, b"\x1b[1;31mred\x1b[0m\ttab\r\x00\x1b[2J\x1b]0;t\x07\x7f\xc2\x9b1m\xff\n")
    shown = client.get(f"/jobs/{running.job_id}/logs").text
    assert shown == "\x1b[1;31mred\x1b[0m\ttab\ufffd\ufffd\ufffd[2J\ufffd]0;t\ufffd\ufffd\ufffd1m\ufffd\n"


def test_a_character_in_two_pieces_is_whole_for_who_reads_on(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    data = "x🙂\x1b[32my\n".encode()
    for split in range(1, len(data)):
        rank = split % 2
        with database.write() as session:
            job = attempts.renew(session, running.id, job_id=running.job_id)
            base = logs.ends(session, running.id).get(rank, 0)
            logs.append(session, job, attempt_id=running.id, rank=rank, offset=base, data=data[:split])
        first = client.get(f"/jobs/{running.job_id}/logs", params={"rank": rank, "offset": base})
        write(database, running, data[split:], rank=rank)
        second = client.get(f"/jobs/{running.job_id}/logs", params={"rank": rank, "offset": position(first)["end"]})
        assert first.text + second.text == data.decode(), split


def test_tail_and_grep(client: httpx.Client, running: Attempt, database: Database) -> None:
    write(database, running, b"".join(b"line %d\n" % number for number in range(100)))
    url = f"/jobs/{running.job_id}/logs"
    last = client.get(url, params={"tail": 2})
    assert (last.text, position(last)["offset"]) == ("line 98\nline 99\n", 100 * 8 - 10 - 16)
    assert client.get(url, params={"tail": 0}).text == ""
    assert client.get(url, params={"tail": 1000}).text.startswith("line 0\n")
    assert client.get(url, params={"grep": "9"}).text.splitlines() == [f"line {n}" for n in range(100) if "9" in str(n)]
    assert client.get(url, params={"grep": "line 9", "tail": 3}).text == "line 97\nline 98\nline 99\n"
    assert client.get(url, params={"grep": ".*"}).text == ""
    both = client.get(url, params={"tail": 1, "offset": 1})
    assert (both.status_code, both.json()["errors"][0]["field"]) == (422, "query.tail")


def test_a_long_log_comes_in_answers_of_a_bounded_size(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    chunk = ("ä" * 32_767 + "\n").encode()
    write(database, running, b"x", *([chunk] * 140))
    text, offset, answers = "", 0, 0
    while True:
        answer = client.get(f"/jobs/{running.job_id}/logs", params={"offset": offset})
        text, answers = text + answer.text, answers + 1
        assert position(answer)["offset"] == offset
        assert position(answer)["end"] - offset <= rank_log.MAX_BYTES
        if position(answer)["end"] == offset:
            break
        offset = position(answer)["end"]
    assert answers == 3
    assert text == "x" + chunk.decode() * 140


def test_bytes_that_were_not_kept_are_told(client: httpx.Client, running: Attempt, database: Database) -> None:
    write(database, running, b"head\n")
    with database.write() as session:
        attempts.renew(session, running.id, job_id=running.job_id)
        logs.drop(session, attempt_id=running.id, rank=0, offset=5, num_bytes=1000)
    write(database, running, b"tail\n")
    answer = client.get(f"/jobs/{running.job_id}/logs")
    assert answer.text == "head\n\n[1000 bytes of this log were not kept]\ntail\n"
    assert position(answer)["end"] == 1010


def test_rank_and_attempt_default_to_what_one_looks_for(
    client: httpx.Client, running: Attempt, database: Database, start: Callable[[str], Attempt]
) -> None:
    url = f"/jobs/{running.job_id}/logs"
    write(database, running, b"first, rank 0\n")
    write(database, running, b"first, rank 1\n", rank=1)
    assert client.get(url).text == "first, rank 0\n"
    close(database, running, ExitReason.INFRA, failing_rank=1)
    assert client.get(url).text == "first, rank 1\n"
    second = start(running.job_id)
    write(database, second, b"second\n")
    assert client.get(url).text == "second\n"
    assert client.get(url, params={"attempt": 1, "rank": 0}).text == "first, rank 0\n"
    for query in ({"attempt": 3}, {"rank": 2}):
        assert client.get(url, params=query).status_code == 404
    assert client.get(url, params={"rank": -1}).status_code == 422


def test_a_job_without_an_attempt_has_no_log_yet(client: httpx.Client, submit: Submit) -> None:
    answer = client.get(f"/jobs/{submit()}/logs")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no log yet: the job is queued.")


def test_following_goes_from_the_queue_through_every_attempt_to_the_end(
    client: httpx.Client, server: Running, submit: Submit, start: Callable[[str], Attempt], database: Database,
    eventually: Callable[..., object],
) -> None:  # fmt: skip
    job_id = submit()
    got: list[str] = []

    def follow() -> None:
        with client.stream("GET", f"/jobs/{job_id}/logs", params={"follow": True}) as response:
            assert position(response) == {"attempt": 1, "rank": 0, "offset": 0}
            got.extend(response.iter_text())

    reader = threading.Thread(target=follow)
    reader.start()
    eventually(lambda: server.plane.streams.num_open == 1)
    first = start(job_id)
    write(database, first, "€".encode()[:1], "€".encode()[1:], b"uro\n")
    close(database, first, ExitReason.INFRA)
    second = start(job_id)
    write(database, second, b"again\n")
    eventually(lambda: "again" in "".join(got))
    write(database, second, b"done")
    close(database, second, ExitReason.COMPLETED)
    reader.join(timeout=20)
    assert not reader.is_alive()
    assert "".join(got) == "€uro\n--- attempt 2 ---\nagain\ndone"


def test_following_only_matching_lines_of_one_attempt(
    client: httpx.Client, running: Attempt, database: Database
) -> None:
    write(database, running, b"loss 1\nother\nlo", b"ss 2\n")
    close(database, running, ExitReason.INFRA)
    query = {"follow": "true", "grep": "loss", "attempt": 1}
    assert client.get(f"/jobs/{running.job_id}/logs", params=query).text == "loss 1\nloss 2\n", (
        "the job itself is queued again"
    )
