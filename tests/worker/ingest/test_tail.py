"""Reading files that others are still writing, in whole lines and whole characters."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from worker.ingest import tail
from worker.ingest.tail import CHUNK_BYTES, Metrics, Pace, Phase, Published


def test_a_line_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = b'{"kind": "phase", "phase": "train", "step": 0, "total_steps": 9}\n'
    path.write_bytes(first + b'{"kind": "metrics", "st')
    lines = tail.read_metrics(path, 0, limit_bytes=1000)
    assert lines.reports == (Phase("train", 0, 9),)
    assert (lines.end, lines.num_bad) == (len(first), 0)
    assert tail.read_metrics(path, lines.end, limit_bytes=1000) == tail.Lines((), lines.end, 0)
    with path.open("ab") as file:
        file.write(b'ep": 3, "at": 0, "values": {"loss": 1}}\n')
    (report,) = tail.read_metrics(path, lines.end, limit_bytes=1000).reports
    assert isinstance(report, Metrics)
    assert (report.step, report.points[0].value) == (3, 1.0)


def test_a_line_beyond_the_limit_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"kind": "phase", "phase": "end"}\n'
    path.write_bytes(b"x" * 2500 + b"\n" + good)
    offset, reports, bad = 0, list[tail.Report](), 0
    while (lines := tail.read_metrics(path, offset, limit_bytes=1000)).end > offset:
        offset, bad = lines.end, bad + lines.num_bad
        reports += lines.reports
    assert reports == [Phase("end", None, None)]
    assert offset == path.stat().st_size
    assert bad > 0


NOT_REPORTS = (
    *(b"", b"\0\0\0", b"[]", b"7", b"\xff\xfe", b"[" * 9000),
    *(b'{"kind": "metrics"}', b'{"kind": "metrics", "step": -1, "values": {}}'),
    *(b'{"kind": "metrics", "step": true, "values": {}}', b'{"kind": "checkpoint", "step": 1, "dir": "/a"}'),
    b'{"kind": "phase", "step": 3000000000, "values": {}}',
    b'{"kind": "checkpoint", "step": 1, "dir": "/a\\u0000b", "manifest_sha256": "' + b"0" * 64 + b'"}',
)


@pytest.mark.parametrize("line", NOT_REPORTS)
def test_what_is_not_a_report(line: bytes) -> None:
    assert tail.parse(line) is None


def test_a_checkpoint_is_read() -> None:
    line = b'{"kind": "checkpoint", "step": 5, "dir": "/a/step-5", "manifest_sha256": "' + b"a" * 64 + b'"}'
    assert tail.parse(line) == Published(5, "/a/step-5", "a" * 64)


def test_chunks_are_the_bytes_however_they_fall(tmp_path: Path) -> None:
    """Random bytes read in random pieces: nothing lost, nothing twice, no chunk too long."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    path = tmp_path / "r0.log"
    parts = [rng.randbytes(rng.randrange(3000)) for _ in range(40)] + ["字é🙂\n".encode() * 9000, b"z" * 200_000]
    rng.shuffle(parts)
    path.write_bytes(b"".join(parts))
    offset, read = 0, b""
    while offset < path.stat().st_size:
        chunks = tail.read_log(path, offset, limit_bytes=rng.randrange(4, 300_000), final=True)
        assert chunks, f"seed {seed}: stuck at {offset}"
        assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
        read += b"".join(chunks)
        offset += sum(map(len, chunks))
    assert read == path.read_bytes(), f"seed {seed}"


def test_half_a_character_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "r0.log"
    path.write_bytes("a字".encode()[:-1])
    assert tail.read_log(path, 0, limit_bytes=1000, final=False) == [b"a"]
    assert tail.read_log(path, 0, limit_bytes=1000, final=True) == ["a字".encode()[:-1]]
    path.write_bytes("a字".encode())
    assert tail.read_log(path, 0, limit_bytes=1000, final=False) == ["a字".encode()]


def test_lines_are_kept_together_where_they_end_in_the_chunk(tmp_path: Path) -> None:
    path = tmp_path / "r0.log"
    path.write_bytes(b"l" * (CHUNK_BYTES - 10) + b"\n" + b"m" * 100 + b"\n")
    assert [len(chunk) for chunk in tail.read_log(path, 0, limit_bytes=1 << 20, final=False)] == [CHUNK_BYTES - 9, 101]


def test_pace_is_told_by_the_ranks_own_clock() -> None:
    pace = Pace()
    assert pace.left_s(100) is None
    for step in range(1, 11):
        pace.saw(step, 1000.0 + 2 * step)
    assert pace.left_s(100) == pytest.approx(180.0)
    assert pace.left_s(None) is None
    # A clock that jumps back is another one: counting starts again.
    pace.saw(11, 5.0)
    assert pace.left_s(100) is None


def test_an_end_that_nobody_waits_for_is_not_told() -> None:
    pace = Pace()
    pace.saw(1, 0.0)
    pace.saw(2, 2500.0)
    assert pace.left_s(100_000_000) is None
    assert pace.left_s(1000) == pytest.approx(998 * 2500.0)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 1e300, "soon", None])
def test_a_time_that_no_database_takes_is_now(at: object) -> None:
    line = json.dumps({"kind": "metrics", "step": 1, "at": at, "values": {"loss": 1}}).encode()
    report = tail.parse(line)
    assert isinstance(report, Metrics)
    assert abs(report.points[0].at.timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 4096,
        b'{"step": 1, "monotonic": 1' + b"0" * 400 + b"}",
        b'{"step": 3000000000, "monotonic": 1}',
        b'{"step": 1, "monotonic": NaN}',
    ],
)
def test_progress_that_nobody_can_mean(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r0.progress"
    path.write_bytes(content)
    assert tail.read_progress(path) is None


def test_progress_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r0.progress"
    assert tail.read_progress(path) is None
    path.write_bytes(b"\0" * 256)
    assert tail.read_progress(path) is None
    path.write_bytes(b'{"step": 4, "total_steps": 9, "phase": "train", "monotonic": 1.5}' + b" " * 100)
    assert tail.read_progress(path) == tail.Progress(4, 9, "train", 1.5)
