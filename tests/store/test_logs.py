from __future__ import annotations

import pytest

from store import attempts, logs
from store.db import Database
from store.models import Attempt

BIG = 1 << 20


def append(database: Database, attempt: Attempt, offset: int, data: bytes, *, rank: int = 0) -> int:
    with database.write() as session:
        job = attempts.renew(session, attempt.id, job_id=attempt.job_id)
        logs.append(session, job, attempt_id=attempt.id, rank=rank, offset=offset, data=data)
    return job.rev


def drop(database: Database, attempt: Attempt, offset: int, num_bytes: int) -> None:
    with database.write() as session:
        attempts.renew(session, attempt.id, job_id=attempt.job_id)
        logs.drop(session, attempt_id=attempt.id, rank=0, offset=offset, num_bytes=num_bytes)


def test_chunks_read_back_as_one_text_from_any_byte(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"one\ntw")
    append(database, running, 6, b"o\nthree\n")
    whole = b"one\ntwo\nthree\n"
    with database.read() as session:
        for offset in range(len(whole) + 2):
            assert logs.read(session, running.id, rank=0, offset=offset, limit_bytes=BIG) == (offset, whole[offset:])
        assert logs.read(session, running.id, rank=0, offset=2, limit_bytes=5) == (2, whole[2:7])
        assert logs.ends(session, running.id) == {0: len(whole)}


@pytest.mark.parametrize("offset", [2, 4])
def test_a_gap_or_an_overlap_is_refused(database: Database, running: Attempt, offset: int) -> None:
    append(database, running, 0, b"one")
    with pytest.raises(ValueError, match="ends at 3"):
        append(database, running, offset, b"x")


def test_the_tail_counts_lines_across_chunks(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"a\nb\nc")
    append(database, running, 5, b"c\nd\n")
    with database.read() as session:
        tails = {
            lines: logs.tail(session, running.id, rank=0, lines=lines, limit_bytes=BIG) for lines in (0, 1, 2, 3, 99)
        }
    assert tails == {0: (9, b""), 1: (7, b"d\n"), 2: (4, b"cc\nd\n"), 3: (2, b"b\ncc\nd\n"), 99: (0, b"a\nb\ncc\nd\n")}


def test_a_progress_bar_is_one_line(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"start\n10%\r20%\r30%\nend\n")
    with database.read() as session:
        assert logs.tail(session, running.id, rank=0, lines=2, limit_bytes=BIG) == (6, b"10%\r20%\r30%\nend\n")


def test_no_bytes_are_no_chunk(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"")
    append(database, running, 0, b"one")
    with database.read() as session:
        assert logs.read(session, running.id, rank=0, limit_bytes=BIG) == (0, b"one")


def test_a_tail_is_bounded_in_bytes(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"x" * 100)
    with database.read() as session:
        assert logs.tail(session, running.id, rank=0, lines=5, limit_bytes=10) == (90, b"x" * 10)


def test_dropped_bytes_are_a_visible_jump(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"head")
    drop(database, running, 4, 1000)
    append(database, running, 1004, b"tail")
    with database.read() as session:
        assert logs.read(session, running.id, rank=0, offset=0, limit_bytes=BIG) == (0, b"head")
        assert logs.read(session, running.id, rank=0, offset=4, limit_bytes=BIG) == (1004, b"tail")
        assert logs.tail(session, running.id, rank=0, lines=9, limit_bytes=BIG) == (1004, b"tail")


def test_ranks_do_not_mix(database: Database, running: Attempt) -> None:
    append(database, running, 0, b"zero")
    rev = append(database, running, 0, b"one", rank=1)
    with database.read() as session:
        assert logs.read(session, running.id, rank=1, limit_bytes=BIG) == (0, b"one")
        assert [
            (number, chunk.rank, chunk.data)
            for number, chunk in logs.since(session, running.job_id, after_rev=rev - 1, limit=9)
        ] == [(1, 1, b"one")]


def test_bytes_that_are_no_text_are_kept_as_they_are(database: Database, running: Attempt) -> None:
    data = bytes(range(256)) * 3
    append(database, running, 0, data)
    with database.read() as session:
        assert logs.read(session, running.id, rank=0, limit_bytes=BIG) == (0, data)
