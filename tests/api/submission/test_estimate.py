"""The estimate of a dry run: from files on this machine, and whatever becomes of the process that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import ByteLevelBPETokenizer

from api.submission import estimate
from tests.api.conftest import all_turns_taken
from trainer.estimate.request import Estimate

TEXT = "".join(f"Line {number} says that it was a bright cold day in April.\n" for number in range(40))


@pytest.fixture
def readable(inputs: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """A spec whose tokenizer is one."""
    (inputs / "train.txt").write_text(TEXT)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [TEXT], 280, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    bpe.save_model(str(inputs / "lf_token"))
    return spec | {"train": spec["train"] | {"line_by_line": True, "num_train_epochs": 2.0}}


def dry_run(client: httpx.Client, spec: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/jobs", params={"dry_run": True}, json=spec)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_dry_run_says_what_the_job_would_take(client: httpx.Client, host: str, readable: dict[str, Any]) -> None:
    told = dry_run(client, readable)
    assert told["placement"] == {"host": "a", "devices": [0, 1]}
    found = Estimate.model_validate(told["estimate"])
    assert (found.sequences.value, found.rows.value, found.global_batch.value) == (40, 40, 16)
    # Three steps a pass, the last of them short.
    assert told["steps"] == found.steps.value == 6
    assert found.parameters.sure == found.steps.sure == found.tokens.sure == "exact"
    assert found.memory_bytes.sure == "modelled"
    assert found.memory_parts is not None


def test_where_any_device_will_do_memory_is_that_of_the_one_it_would_get(
    client: httpx.Client, host: str, readable: dict[str, Any]
) -> None:
    got = dry_run(client, readable | {"device_type": "any"})
    assert got["estimate"]["memory_parts"] == dry_run(client, readable)["estimate"]["memory_parts"]


def test_a_tokenizer_that_is_none_is_told(client: httpx.Client, host: str, spec: dict[str, Any]) -> None:
    found = dry_run(client, spec)["estimate"]
    assert found["parameters"]["sure"] == found["steps"]["sure"] == "unknown"
    assert "lf_token" in found["parameters"]["why"]
    assert found["global_batch"]["value"] == 16


def test_an_estimate_that_fails_leaves_the_rest_as_it_was(
    client: httpx.Client, host: str, readable: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "LIMIT_S", 0.001)
    told = dry_run(client, readable)
    assert told["placement"] == {"host": "a", "devices": [0, 1]}
    assert told["steps"] is None
    assert told["estimate"]["steps"]["why"].startswith("not done within")


def test_a_tokenizer_that_breaks_its_library_breaks_nothing_else(
    client: httpx.Client, host: str, readable: dict[str, Any], inputs: Path
) -> None:
    """A pattern that never comes to an end on this text: the library panics, past every handler of ours."""
    directory = inputs / "hostile"
    directory.mkdir()
    tokenizer = json.loads(
        ByteLevelBPETokenizer(*(str(inputs / "lf_token" / name) for name in ("vocab.json", "merges.txt"))).to_str()
    )
    pattern = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": pattern}))
    (inputs / "train.txt").write_text("a" * 60 + "b\n")
    told = dry_run(client, readable | {"train": readable["train"] | {"tokenizer_name": str(directory)}})
    assert told["placement"] == {"host": "a", "devices": [0, 1]}
    assert told["estimate"]["steps"]["why"] == "reading the tokenizer or the text failed; the API's log has the details"
    assert client.get("/readyz").status_code == 200


def test_no_more_than_some_are_made_at_once(client: httpx.Client, host: str, readable: dict[str, Any]) -> None:
    with all_turns_taken():
        assert dry_run(client, readable)["estimate"]["steps"]["why"].startswith("other estimates are being made")
    assert dry_run(client, readable)["steps"] == 6
