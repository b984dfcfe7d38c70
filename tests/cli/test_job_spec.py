import json
from pathlib import Path
from typing import Any

import pytest

from cli import job_spec


def build(*settings: str, file: Path | None = None, preset: str | None = "demo") -> dict[str, Any]:
    return job_spec.build(file, preset=preset, name=None, settings=settings)


def test_a_bare_name_is_a_field_of_the_job_or_else_of_training() -> None:
    assert build("num_devices=2", "learning_rate=1e-4", "do_eval=false", "train.seed=7", "labels.team=nlp") == {
        "preset": "demo",
        "num_devices": 2,
        "train": {"learning_rate": 1e-4, "do_eval": False, "seed": 7},
        "labels": {"team": "nlp"},
    }


def test_labels_are_text_whatever_they_look_like() -> None:
    assert build("labels.run=7")["labels"] == {"run": "7"}


def test_a_file_that_is_here_is_sent_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("text\n")
    train = build("train_file=mine.txt", "validation_file=not-here.txt")["train"]
    assert train == {"train_file": str(tmp_path / "mine.txt"), "validation_file": "not-here.txt"}


def test_settings_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"preset": "train_full_1p", "train": {"seed": 1, "max_steps": 5}}))
    body = build("seed=2", file=file, preset=None)
    assert body == {"preset": "train_full_1p", "train": {"seed": 2, "max_steps": 5}}


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\udc80"])
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec.json"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(job_spec.SpecError, match=r"spec\.json"):
        build(file=file)


def test_nothing_to_submit_is_an_error() -> None:
    with pytest.raises(job_spec.SpecError, match="--preset"):
        build(preset=None)


@pytest.mark.parametrize("setting", ["num_devices", "=3"])
def test_a_setting_needs_a_key_and_a_value(setting: str) -> None:
    with pytest.raises(job_spec.SpecError, match="KEY=VALUE"):
        build(setting)


@pytest.mark.parametrize("text", ["../hosts", "a/b", "..", "", "a?b", "x" * 65])
def test_a_job_id_never_becomes_another_path(text: str) -> None:
    with pytest.raises(job_spec.SpecError):
        job_spec.job_id(text)


def test_a_host_name_never_becomes_another_path() -> None:
    assert job_spec.host_name("npu-07") == "npu-07"
    assert job_spec.host_name("../jobs?a#b") == "..%2Fjobs%3Fa%23b"
    for text in ("", ".", ".."):
        with pytest.raises(job_spec.SpecError):
            job_spec.host_name(text)
