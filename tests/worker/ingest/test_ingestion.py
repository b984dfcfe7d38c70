"""What the ranks write arrives as they wrote it: bytes, order, points, and what was dropped is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from store import logs
from store.models import LogChunk, MetricPoint
from store.states import JobStatus
from worker.ingest.tail import CHUNK_BYTES

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


def test_any_bytes_arrive_as_they_were_written(host: Plane) -> None:
    job_id = host.submit(
        [
            {"do": "write", "hex": "00fffec3282020"},
            {"do": "write", "hex": "e4b8ade69687", "times": 40_000},
            {"do": "write", "hex": "0a"},
            {"do": "say", "text": "x" * 300, "times": 2000},
            {"do": "write", "hex": "f09f98"},
            {"do": "succeed"},
        ]
    )
    assert host.until_ended(job_id).status is JobStatus.SUCCEEDED
    written = (host.run_dir(job_id) / "r0.log").read_bytes()
    assert len(written) == 7 + 240_000 + 1 + 301 * 2000 + 3
    assert host.log(job_id) == written
    with host.database.read() as session:
        chunks = session.scalars(select(LogChunk).where(LogChunk.job_id == job_id).order_by(LogChunk.offset)).all()
    assert all(chunk.num_bytes <= CHUNK_BYTES for chunk in chunks)
    # The Chinese run has no newline, and yet no character of it is cut in two.
    middle = [chunk.data for chunk in chunks if chunk.offset > 0 and chunk.offset + chunk.num_bytes < 240_000]
    assert middle
    assert all(data.decode() for data in middle)


def test_odd_lines_of_metrics_cost_only_themselves(host: Plane) -> None:
    job_id = host.submit(
        [
            {
                "do": "report",
                "line": '{"kind": "metrics", "step": 1, "at": 1795362075.5, "values": {"loss": 2.5, "bad": "word"}}\n',
            },
            {"do": "report", "line": "\x00\x00\x00 not a line\n[1, 2]\n"},
            {
                "do": "report",
                "line": '{"kind": "metrics", "step": 2, "at": "2026-11-22T15:00:00Z", "values": {"loss": "nan"}}\n',
            },
            {"do": "report", "line": '{"kind": "met'},
            {
                "do": "report",
                "line": 'rics", "step": 3, "at": 1, "values": {"loss": "-inf", "l\\u0000ss": 1, "\\ud800": 2}}\n',
            },
            {"do": "metrics", "step": 4, "values": {"loss": 1.0}},
            {"do": "metrics", "step": 4, "values": {"loss": 0.5}},
            {"do": "report", "line": '{"kind": "metrics", "step": 5, "values": {"loss": 9'},
            {"do": "succeed"},
        ]
    )
    assert host.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert host.series(job_id, "loss") == [(1, 2.5), (2, None), (3, None), (4, 0.5)]
    with host.database.read() as session:
        points = session.scalars(select(MetricPoint).where(MetricPoint.job_id == job_id)).all()
    assert {(point.step, point.flag) for point in points if point.flag} == {(2, "nan"), (3, "-inf")}
    assert {point.at.isoformat() for point in points if point.name == "loss" and point.step < 3} == {
        "2026-11-22T15:41:15.500000+00:00",
        "2026-11-22T15:00:00+00:00",
    }
    assert "metrics_skipped" in host.kinds(job_id)


def test_beyond_the_cap_head_and_tail_are_kept_and_the_loss_is_told(plane: Plane) -> None:
    plane.start(LONGYARD_MAX_LOG_BYTES="200000")
    job_id = plane.submit(
        [
            {"do": "say", "text": "line # " + "y" * 90, "times": 20_000},
            {"do": "fail", "type": "ValueError", "message": "at the very end"},
        ]
    )
    assert plane.until_ended(job_id).status is JobStatus.FAILED
    written = (plane.run_dir(job_id) / "r0.log").stat()
    attempt = plane.attempt(job_id)
    with plane.database.read() as session:
        (dropped,) = logs.dropped(session, attempt.id).values()
        assert logs.ends(session, attempt.id) == {0: written.st_size}
        chunks = session.scalars(select(LogChunk).where(LogChunk.job_id == job_id).order_by(LogChunk.offset)).all()
        _, tail = logs.tail(session, attempt.id, rank=0, lines=1, limit_bytes=1000)
    assert sum(chunk.num_bytes for chunk in chunks) + dropped == written.st_size
    assert sum(chunk.num_bytes for chunk in chunks) <= 200_000
    assert chunks[0].data.startswith(b"line 0 y")
    assert tail.endswith(b"at the very end\n")
    told = [event.data["num_bytes"] for event in plane.events(job_id) if event.kind == "log_dropped"]
    assert told == [dropped]
    assert written.st_blocks * 512 < written.st_size, "the dropped range is a hole in the file"
