"""Following a job from a terminal: a whole plane, and a trainer that does what the test says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Longyard, Up


@pytest.fixture(scope="module")
def longyard(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Iterator[Longyard]:
    up = Up(tmp_path_factory.mktemp("follow") / "data", inputs)
    up.environment["LONGYARD_TRAINER_MODULE"] = "tests.fake_trainer"
    up.start()
    try:
        yield up.longyard
    finally:
        up.stop()


def program(longyard: Longyard, name: str, *operations: dict[str, Any]) -> list[str]:
    (longyard.inputs / name).write_text("".join(json.dumps(operation) + "\n" for operation in operations))
    return [*longyard.files, "-s", f"train_file={name}", "-s", "num_devices=1"]


def test_a_job_that_succeeds_is_followed_to_its_figures(longyard: Longyard) -> None:
    files = program(
        longyard,
        "succeeds",
        {"do": "phase", "name": "train", "total_steps": 3},
        {"do": "metrics", "step": 3, "values": {"loss": 1.25, "samples_per_second": 96.0}},
        {"do": "succeed", "perplexity": 3.5, "initial_perplexity": 4096.0, "fps": 1234.5},
    )
    done = longyard("submit", "--preset", "demo", *files, "--follow")
    assert done.returncode == 0, done.stderr
    assert "perplexity before  4,096" in done.stdout
    assert "perplexity after   3.5" in done.stdout
    assert "fps                1,234.5 samples/s" in done.stdout
    assert "model.safetensors" in done.stdout


def test_a_job_that_fails_is_exit_1_with_the_reason_and_the_log(longyard: Longyard) -> None:
    files = program(
        longyard,
        "fails",
        {"do": "say", "text": "about to fail"},
        {"do": "fail", "type": "ValueError", "message": "no such thing"},
    )
    done = longyard("submit", "--preset", "demo", *files, "--follow")
    assert done.returncode == 1
    assert "no such thing" in done.stdout
    assert "about to fail" in done.stdout


def test_progress_is_told_while_it_runs(longyard: Longyard, tmp_path: Path) -> None:
    files = program(
        longyard,
        "walks",
        {"do": "phase", "name": "train", "total_steps": 7},
        {"do": "metrics", "step": 7, "values": {"loss": 0.5, "samples_per_second": 12.0}},
        {"do": "phase", "name": "evaluate"},
        {"do": "succeed"},
    )
    done = longyard("submit", "--preset", "demo", *files, "--follow", "--json")
    assert "\x1b" not in done.stderr
    assert done.stderr.startswith(f"job {json.loads(done.stdout)['id']}\n")


def test_logs_keep_colours_and_lose_everything_else(longyard: Longyard) -> None:
    hostile = "\x1b]0;owned\x07\x1b[31mred\x1b[0m\x1b[2J\n"
    files = program(longyard, "writes", {"do": "write", "hex": hostile.encode().hex()}, {"do": "succeed"})
    job_id = longyard.submit(*files)
    followed = longyard("logs", job_id, "--follow")
    assert followed.returncode == 0, followed.stderr
    assert "\x1b[31mred\x1b[0m" in followed.stdout
    assert "\x07" not in followed.stdout
    assert "\x1b]" not in followed.stdout
    assert "\x1b[2J" not in followed.stdout
    assert longyard("logs", job_id, "--grep", "red").stdout == followed.stdout


def test_metrics_of_a_job(longyard: Longyard) -> None:
    files = program(longyard, "counts", {"do": "count", "first": 1, "last": 40}, {"do": "succeed"})
    done = longyard("submit", "--preset", "demo", *files, "--follow", "--json")
    job_id = json.loads(done.stdout)["id"]
    (row,) = [line.split() for line in longyard("metrics", job_id, "--names", "loss").stdout.splitlines()[1:]]
    assert row == ["loss", "1", "40", "40", "1", "40"]
    assert longyard("metrics", job_id, "--csv").stdout.count("\n") == 41
