"""What the README tells people to type, typed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Plane

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def session() -> str:
    """The shell lines of the README's curl session."""
    (block,) = re.findall(r"<!-- session -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return block


def test_the_curl_session_does_what_it_says(plane: Plane, tmp_path: Path, eventually: Callable[..., object]) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    # The session names files by $PWD, as in a clone; here the clone's examples are the data root itself.
    script = session().replace("$PWD/examples", f"{ROOT}/examples")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\nprintf '\\n%s %s\\n' \"$job\" \"$other\""],
        cwd=tmp_path, env=plane.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job_id, other_id = done.stdout.splitlines()[-1].split()

    job = plane.job(job_id)
    assert (job["status"], job["labels"], job["progress"]["step"]) == ("succeeded", {"team": "nlp"}, 40)
    answers = [json.loads(line) for line in _json_texts(done.stdout)]
    first, metrics, timeline, cancelled, refused = answers
    assert first["id"] == job_id
    assert {series["name"] for series in metrics["series"]} == {"loss", "perplexity"}
    assert timeline["data"][0]["kind"] == "submitted"
    assert (cancelled["id"], cancelled["intent"]) == (other_id, "cancel")
    assert (refused["status"], refused["errors"][0]["field"]) == (422, "num_devices")
    assert refused["errors"][0]["fix"]
    log = plane.data_dir / "jobs" / job_id / "a1" / "r0.log"
    assert log.read_text() in done.stdout  # follow=true gave all of it, to its last line
    eventually(lambda: plane.job(other_id)["status"] == "cancelled")


def _json_texts(output: str) -> list[str]:
    """The answers in JSON; none of them has a line break, but curl puts none behind them either."""
    decoder, found, position = json.JSONDecoder(), list[str](), 0
    while (start := output.find('{"', position)) >= 0:
        _, position = decoder.raw_decode(output, start)
        found.append(output[start:position])
    return found
