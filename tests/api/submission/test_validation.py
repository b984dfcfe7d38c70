"""What is refused before anything is queued. On SQLite alone: no refusal reaches the database."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store import hosts
from store.db import Database
from store.settings import Settings
from tests.api.conftest import serving

Spec = dict[str, Any]


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "data" / "longyard.db"
    path.parent.mkdir()
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


def refusal(answer: httpx.Response, code: str = "invalid_spec") -> dict[str, dict[str, str]]:
    """By field; every one says the way out."""
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text
    problem = answer.json()
    assert problem["code"] == code, problem
    assert problem["errors"]
    assert all(error["message"] and error["fix"] for error in problem["errors"])
    assert problem["errors"][0]["field"] in problem["detail"]
    return {error["field"]: error for error in problem["errors"]}


def with_train(spec: Spec, **changes: Any) -> Spec:
    return spec | {"train": spec["train"] | changes}


def test_shapes_that_are_wrong_name_field_and_fix(client: httpx.Client, spec: Spec) -> None:
    cases: list[tuple[Spec, str, str]] = [
        (spec | {"nmae": "x"}, "nmae", "did you mean name?"),
        (spec | {"command": "rm"}, "command", "remove it"),
        (with_train(spec, max_seq_lenth=3), "train.max_seq_lenth", "did you mean max_seq_length?"),
        (
            with_train(spec, from_scratch={"hiden_size": 8}),
            "train.from_scratch.hiden_size",
            "did you mean hidden_size?",
        ),
        (with_train(spec, learning_rate="5e-5"), "train.learning_rate", "give a number"),
        (with_train(spec, max_steps=2.5), "train.max_steps", "give a whole number"),
        (with_train(spec, max_steps=True), "train.max_steps", "give a whole number"),
        (with_train(spec, bf16=1), "train.bf16", "give true or false"),
        (with_train(spec, lr_scheduler_type="cosin"), "train.lr_scheduler_type", "give 'linear', 'cosine'"),
        (with_train(spec, per_device_train_batch_size=0), "train.per_device_train_batch_size", "give at least 1"),
        ({"train": {}}, "preset", "give it"),
        (spec | {"num_devices": 0}, "num_devices", "give at least 1"),
        (spec | {"num_devices": 9}, "num_devices", "give at most 8"),
        (spec | {"num_devices": "2"}, "num_devices", "give a whole number"),
        (spec | {"device_type": "tpu"}, "device_type", "give 'npu', 'cuda', 'cpu' or 'any'"),
        (spec | {"name": "x" * 129}, "name", "keep it within 128"),
        (spec | {"name": "a\nb"}, "name", "give a line of text"),
        (spec | {"name": "a\x00b"}, "name", "give a line of text"),
        (spec | {"name": " \u3000 "}, "name", "give a line of text"),
        (spec | {"labels": {"a=b": "v"}}, "labels.a=b.[key]", "take letters, digits"),
        (spec | {"labels": {'a"b': "v"}}, 'labels.a"b.[key]', "take letters, digits"),
        (spec | {"labels": {"é": "v"}}, "labels.é.[key]", "take letters, digits"),
        (spec | {"labels": {"": "v"}}, "labels..[key]", "take letters, digits"),
        (spec | {"labels": {"k": "a\nb"}}, "labels.k", "leave them out"),
        (spec | {"labels": {f"k{n}": "v" for n in range(65)}}, "labels", "keep it within 64"),
        (spec | {"labels": {"k": 1}}, "labels.k", "give a string"),
        (spec | {"labels": [["k", "v"]]}, "labels", "give an object"),
        (spec | {"time_limit_s": 0}, "time_limit_s", "give more than 0"),
        (spec | {"priority": 1001}, "priority", "give at most 1000"),
        (spec | {"train": None}, "train", "give an object"),
    ]
    for body, field, fix in cases:
        found = refusal(client.post("/jobs", json=body), "invalid_request")
        assert list(found) == [field], body
        assert found[field]["fix"].startswith(fix), found
    assert client.get("/jobs").json()["data"] == []


def test_what_is_all_wrong_is_answered_briefly(client: httpx.Client, spec: Spec) -> None:
    """Whoever sends much that is unknown gets the first of it back, cut, and how much more there was."""
    for unknown in ({f"preset{n}": 1 for n in range(10_000)}, {"x" * 200_000: 1}):
        answer = client.post("/jobs", json=unknown)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "invalid_request")
        assert len(problem["errors"]) == min(20, len(unknown) + 1)
        assert all(error["fix"] for error in problem["errors"])
        assert len(answer.content) < 8_000
    many = client.post("/jobs", json=with_train(spec, **{f"seed{n}": 1 for n in range(10_000)}))
    assert "19 more in `errors`, and 9,980 beyond them" in many.json()["detail"]
    assert len(many.content) < 8_000


def test_an_unknown_field_is_compared_with_what_that_route_takes(client: httpx.Client) -> None:
    found = refusal(client.post("/login", json={"cod": "x"}), "invalid_request")
    assert found["cod"]["fix"] == "did you mean code?"
    found = refusal(client.post("/login", json={"preset": "x"}), "invalid_request")
    assert found["preset"]["fix"] == "remove it; known are code, token"
    found = refusal(client.get("/jobs?foo=1"), "invalid_request")
    assert found["query.foo"]["fix"] == "remove it; known are status, owner, label, q, limit, after"


def test_limits_hold_at_their_edge(client: httpx.Client, spec: Spec) -> None:
    for change in (
        {"name": "x" * 128},
        {"labels": {f"k{n}": "v" for n in range(64)}},
        {"priority": 1000},
        {"labels": {"k" * 63: "v" * 256}},
        {"num_devices": 8},
    ):
        answer = client.post("/jobs", json=spec | change)
        assert answer.status_code == 201, answer.text


def test_a_body_is_at_most_256_kib(client: httpx.Client, spec: Spec) -> None:
    body = json.dumps(spec).encode()
    headers = {"Content-Type": "application/json"}
    full = client.post("/jobs", content=body + b" " * (256 * 1024 - len(body)), headers=headers)
    assert full.status_code == 201
    over = client.post("/jobs", content=body + b" " * (256 * 1024 + 1 - len(body)), headers=headers)
    assert (over.status_code, over.json()["code"]) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 65536

    stranger = client.post("/login", content=b'{"code": "x"}' + b" " * 4096, headers=headers)
    assert (stranger.status_code, stranger.json()["code"]) == (413, "too_large"), "before anybody knows who it is"
    try:
        endless_answer = client.post("/jobs", content=endless(), headers=headers)
    except httpx.WriteError:
        pass  # the server has closed on us, which is as good
    else:
        assert endless_answer.status_code == 413
    assert client.get("/healthz").status_code == 200


def test_bodies_that_are_no_json_object_are_told_so(client: httpx.Client) -> None:
    bodies = [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"preset": NaN}', b'{"preset": "demo", "priority": ' + b"9" * 100_000 + b"}",
        b"[" * 100_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000, b'{"preset": "\\ud800"}', b'{"preset": "demo", "name": "\\ud800"}',
    ]  # fmt: skip
    for body in bodies:
        answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        refusal(answer, answer.json()["code"])
        assert len(answer.content) < 10_000, "what was sent is not sent back"


def test_an_unknown_preset_gets_the_list(client: httpx.Client, spec: Spec) -> None:
    found = refusal(client.post("/jobs", json=spec | {"preset": "dmeo"}))
    assert found["preset"]["fix"].startswith("did you mean demo?")
    assert "train_full_8p" in found["preset"]["fix"]


def test_fields_that_contradict_each_other(client: httpx.Client, spec: Spec) -> None:
    found = refusal(client.post("/jobs", json=with_train(spec, max_seq_length=129)))
    assert "128 positions" in found["train.max_seq_length"]["message"]
    assert "128" in found["train.max_seq_length"]["fix"]
    assert client.post("/jobs", json=with_train(spec, max_seq_length=128)).status_code == 201
    assert list(refusal(client.post("/jobs", json=with_train(spec, bf16=True, fp16=True)))) == ["train.fp16"]
    assert list(refusal(client.post("/jobs", json=with_train(spec, fp16=True)))) == ["train.fp16"], "on cpu"
    incomplete = {"preset": "demo", "train": {"train_file": spec["train"]["train_file"]}}
    assert list(refusal(client.post("/jobs", json=incomplete))) == ["train.validation_file"]


def test_paths_outside_the_roots_are_refused_without_a_look(client: httpx.Client, spec: Spec, inputs: Path) -> None:
    outside = inputs.parent / "secret.txt"
    outside.write_text("secret")
    (inputs / "link.txt").symlink_to(outside)
    (inputs / "dirlink").symlink_to(inputs.parent)
    os.mkfifo(inputs / "fifo")
    for path in (
        str(outside), "/etc/passwd", "/proc/self/environ", f"{inputs}/../secret.txt", f"{inputs}/link.txt", f"{inputs}/dirlink/secret.txt",
        f"{inputs}/fifo",
        f"{inputs}", f"{inputs}/missing.txt", "file:///etc/passwd", "train.txt", "..\\..\\x", "C:\\x", f"{inputs}/%2e%2e/x",
        "/" + "x" * 4000, f"{inputs}/" + "y/" * 1500,
    ):  # fmt: skip
        for field in ("train_file", "tokenizer_name"):
            found = refusal(client.post("/jobs", json=with_train(spec, **{field: path})))
            assert f"train.{field}" in found, path
            assert "secret" not in str(found).replace("secret.txt", "")
    for path in ("/a\x00b", "/" + "x" * 5000, "a\nb"):
        refusal(client.post("/jobs", json=with_train(spec, train_file=path)), "invalid_request")
    named = refusal(client.post("/jobs", json=with_train(spec, train_file="/etc/passwd")))["train.train_file"]
    assert "LONGYARD_DATA_ROOTS" in named["fix"]


def test_a_directorys_files_may_not_lead_out_either(client: httpx.Client, spec: Spec, inputs: Path) -> None:
    (inputs / "lf_token" / "vocab.json").unlink()
    (inputs / "lf_token" / "vocab.json").symlink_to("/etc/passwd")
    found = refusal(client.post("/jobs", json=spec))
    assert found["train.tokenizer_name"]["code"] == "path_refused"


def test_a_directory_must_hold_what_it_is_named_for(client: httpx.Client, spec: Spec, inputs: Path) -> None:
    (inputs / "lf_token" / "merges.txt").unlink()
    assert list(refusal(client.post("/jobs", json=spec))) == ["train.tokenizer_name"]


def test_positions_of_a_model_on_disk_bound_the_length(client: httpx.Client, spec: Spec, inputs: Path) -> None:
    model = inputs / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "longformer", "max_position_embeddings": 514}))
    long = {**with_train(spec, config_name=str(model), max_seq_length=1024)}
    assert "512" in refusal(client.post("/jobs", json=long))["train.max_seq_length"]["message"]
    assert client.post("/jobs", json=with_train(spec, config_name=str(model), max_seq_length=512)).status_code == 201


def test_a_root_that_is_not_on_this_machine_is_the_workers_to_check(
    client: httpx.Client, spec: Spec, inputs: Path
) -> None:
    for path in inputs.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    inputs.rmdir()
    assert client.post("/jobs", json=spec).status_code == 201
    assert list(refusal(client.post("/jobs", json=with_train(spec, train_file="/elsewhere/x")))) == ["train.train_file"]


def test_names_that_need_what_is_not_there_say_the_ways_out(client: httpx.Client, spec: Spec) -> None:
    hub = refusal(client.post("/jobs", json=with_train(spec, model_name_or_path="allenai/longformer-base-4096")))
    assert "LONGYARD_ALLOW_NETWORK" in hub["train.model_name_or_path"]["fix"]
    assert "local directory" in hub["train.model_name_or_path"]["fix"]
    asset = refusal(client.post("/jobs", json=with_train(spec, train_file="asset:corpus")))
    assert "yet" in asset["train.train_file"]["message"]


def test_no_host_is_worth_waiting_for_but_one_that_is_too_small_is_not(
    client: httpx.Client, spec: Spec, database: Database, host: str
) -> None:
    assert client.post("/jobs", json=spec | {"num_devices": 4}).status_code == 201
    found = refusal(client.post("/jobs", json=spec | {"num_devices": 5}))
    assert "the largest with cpu, a, has 4" in found["num_devices"]["message"]
    assert found["num_devices"]["fix"].startswith("lower it to 4")
    found = refusal(client.post("/jobs", json=spec | {"device_type": "npu"}))
    assert found["device_type"]["fix"].startswith("take one of cpu")
    with database.write() as session:
        hosts.lose(session, host)
    assert client.post("/jobs", json=spec | {"num_devices": 4}).status_code == 201, "it may come back"


def test_more_than_an_owner_may_ever_hold_is_refused_and_not_queued(
    settings: Settings, token: str, spec: Spec, host: str
) -> None:
    limited = settings.model_copy(update={"quotas": {"admin": 2, "*": 8}})
    headers = {"Authorization": f"Bearer {token}"}
    with serving(limited) as server, httpx.Client(base_url=server.url, headers=headers, timeout=20) as client:
        for _ in range(2):
            assert client.post("/jobs", json=spec | {"num_devices": 2}).status_code == 201, "it waits for its turn"
        for query in ("", "?dry_run=true"):
            (error,) = refusal(client.post(f"/jobs{query}", json=spec | {"num_devices": 3})).values()
            assert (error["field"], error["code"]) == ("num_devices", "over_quota")
            assert error["message"] == "3 is more than admin may hold at once, which is 2"
            assert error["fix"] == "lower it to 2, or have the operator raise LONGYARD_QUOTAS"


def test_every_error_is_told_at_once(client: httpx.Client, spec: Spec, host: str) -> None:
    body = with_train(spec, train_file="/nowhere", tokenizer_name="asset:x") | {"num_devices": 8}
    found = refusal(client.post("/jobs", json=body))
    assert set(found) == {"num_devices", "train.train_file", "train.tokenizer_name"}


def test_a_dry_run_refuses_alike(client: httpx.Client, spec: Spec) -> None:
    refusal(client.post("/jobs?dry_run=true", json=with_train(spec, train_file="/nowhere")))


def test_the_schema_says_what_a_form_needs(client: httpx.Client) -> None:
    schema = client.get("/schema").json()
    assert schema["required"] == ["preset"]
    assert schema["additionalProperties"] is False
    train = schema["$defs"]["TrainOverrides"]
    assert "required" not in train
    assert train["properties"]["max_seq_length"]["maximum"] == 131072
    assert all("default" not in field for field in train["properties"].values())


def test_presets_are_listed_and_each_is_accepted_with_its_files(client: httpx.Client, spec: Spec, inputs: Path) -> None:
    presets: list[Spec] = client.get("/presets").json()["data"]
    assert {preset["name"] for preset in presets} == {"demo", "train_full_1p", "train_full_8p", "train_performance_8p"}
    model = inputs / "base"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "longformer", "max_position_embeddings": 4098}))
    (model / "model.safetensors").write_bytes(b"x")
    for preset in presets:
        train = spec["train"] | ({} if preset["name"] == "demo" else {"model_name_or_path": str(model)})
        answer = client.post("/jobs", json={"preset": preset["name"], "train": train})
        assert answer.status_code == 201, answer.text
        assert answer.json()["num_devices"] == preset["num_devices"]
