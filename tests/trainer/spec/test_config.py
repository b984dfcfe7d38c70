"""The typed spec: what it accepts, and that each refusal names its field and the way out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.spec.config import Problem, RunConfig, TrainConfig, check_inputs, inputs, kind_of
from trainer.spec.presets import PRESETS, resolve

FILES = {"train_file": "/d/train.txt", "validation_file": "/d/test.txt", "tokenizer_name": "/d/lf_token"}


def refusal(**fields: Any) -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as caught:
        resolve("demo", FILES | fields)
    (error,) = caught.value.errors()
    return error["loc"], error["msg"]


def test_presets_hold_the_recipe() -> None:
    one, eight, performance = (resolve(name, FILES) for name in list(PRESETS)[:3])
    assert one == eight
    assert (PRESETS["train_full_1p"].num_devices, PRESETS["train_full_8p"].num_devices) == (1, 8)
    assert (one.per_device_train_batch_size, one.max_seq_length, one.learning_rate) == (16, 512, 5e-5)
    assert (one.num_train_epochs, one.do_eval, one.save_steps) == (3, True, 50_000)
    assert (one.line_by_line, one.pad_to_max_length, one.mlm_probability) == (True, True, 0.15)
    assert (one.optim, one.hidden_act) == ("adamw_torch_npu_fused", "gelu_python")
    assert (one.dataloader_num_workers, one.dataloader_pin_memory) == (16, True)
    assert (performance.num_train_epochs, performance.do_eval) == (1, False)


def test_every_field_of_the_schema_is_described() -> None:
    schema = TrainConfig.model_json_schema()
    shape = schema["$defs"]["LongformerShape"]
    undescribed = [n for part in (schema, shape) for n, f in part["properties"].items() if not f.get("description")]
    assert undescribed == []


def test_a_spec_survives_json() -> None:
    spec = resolve("demo", FILES)
    assert TrainConfig.model_validate(json.loads(spec.model_dump_json())) == spec
    run = RunConfig.model_validate(spec.model_dump() | {"device_type": "cpu", "rendezvous": "file:///d/rendezvous"})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("fields", "where", "says"),
    [
        ({"max_seq_length": 129}, ("max_seq_length",), "128 or less"),
        ({"max_seq_length": "64"}, ("max_seq_length",), "valid integer"),
        ({"learning_rate": float("nan")}, ("learning_rate",), "finite"),
        ({"per_device_train_batch_size": True}, ("per_device_train_batch_size",), "valid integer"),
        ({"command": "sh"}, ("command",), "not permitted"),
        ({"bf16": True, "fp16": True}, ("fp16",), "choose one"),
        ({"warmup_steps": 5}, ("warmup_ratio",), "leave one at 0"),
        ({"max_steps": 0}, ("max_steps",), "num_train_epochs"),
        ({"train_file": "/d/\n"}, ("train_file",), "pattern"),
        (
            {"from_scratch": {"hidden_size": 100, "max_position_embeddings": 130}},
            ("from_scratch", "hidden_size"),
            "multiple",
        ),
        ({"model_name_or_path": "/m", "config_name": "/c"}, ("config_name",), "leave one of them out"),
        ({"validation_file": None}, ("validation_file",), "do_eval to false"),
        ({"do_eval": False, "eval_steps": 5}, ("eval_steps",), "remove it"),
        ({"tokenizer_name": None}, ("tokenizer_name",), "name one"),
    ],
)
def test_refusals_name_the_field_and_the_way_out(fields: dict[str, Any], where: tuple[str, ...], says: str) -> None:
    loc, message = refusal(**fields)
    assert loc == where
    assert says in message


def test_the_sequence_may_fill_the_positions() -> None:
    assert resolve("demo", FILES | {"max_seq_length": 128}).max_seq_length == 128


def test_another_model_replaces_the_presets_own() -> None:
    spec = resolve("demo", FILES | {"model_name_or_path": "/m"})
    assert (spec.model_name_or_path, spec.from_scratch) == ("/m", None)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("allenai/longformer-base-4096", "hub"),
        ("roberta-base", "hub"),
        ("asset:lf_token", "asset"),
        ("/models/longformer", "path"),
        ("./longformer", "path"),
        ("../longformer", "path"),
        ("corpus/en/train", "path"),
    ],
)
def test_sources_are_told_apart(value: str, kind: str) -> None:
    assert kind_of(value) == kind


def test_hub_names_need_the_network() -> None:
    spec = TrainConfig(model_name_or_path="allenai/longformer-base-4096", train_file="/d/t", do_eval=False)
    assert inputs(spec) == {"model_name_or_path": "allenai/longformer-base-4096", "train_file": "/d/t"}
    problem = check_inputs(spec)[0]
    assert problem.field == "model_name_or_path"
    assert "directory that holds it" in problem.message
    assert "allow the network" in problem.message
    assert [p.field for p in check_inputs(spec, allow_network=True)] == ["train_file"]


@pytest.fixture
def model_directory(tmp_path: Path) -> Callable[..., Path]:
    def make(config: dict[str, Any], *files: str) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for name in ("model.safetensors", "tokenizer.json", "train.txt", *files):
            (tmp_path / name).write_text("x", encoding="utf-8")
        return tmp_path

    return make


LONGFORMER = {"model_type": "longformer", "max_position_embeddings": 514}


@pytest.mark.parametrize(
    ("config", "length", "field", "says"),
    [
        (LONGFORMER, 513, "max_seq_length", "512 or less"),
        (LONGFORMER | {"model_type": "bert"}, 512, "model_name_or_path", "give a Longformer"),
        (LONGFORMER | {"auto_map": {}}, 512, "model_name_or_path", "names code"),
        ({"model_type": "longformer"}, 512, "model_name_or_path", "max_position_embeddings"),
    ],
)
def test_a_model_directory_is_checked(
    model_directory: Callable[..., Path], config: dict[str, Any], length: int, field: str, says: str
) -> None:
    path = model_directory(config)
    spec = TrainConfig(
        model_name_or_path=str(path), train_file=str(path / "train.txt"), do_eval=False, max_seq_length=length
    )
    (problem,) = check_inputs(spec)
    assert problem.field == field
    assert says in problem.message


def test_a_good_model_directory_has_no_problem(model_directory: Callable[..., Path]) -> None:
    path = model_directory(LONGFORMER)
    spec = TrainConfig(
        model_name_or_path=str(path), train_file=str(path / "train.txt"), do_eval=False, max_seq_length=512
    )
    assert check_inputs(spec) == []


def test_pickled_weights_are_refused(model_directory: Callable[..., Path]) -> None:
    path = model_directory(LONGFORMER, "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    spec = TrainConfig(model_name_or_path=str(path), train_file=str(path / "train.txt"), do_eval=False)
    (problem,) = check_inputs(spec)
    assert problem.field == "model_name_or_path"
    assert "pickle" in problem.message


def test_missing_files_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    spec = resolve("demo", FILES | {"train_file": str(empty), "tokenizer_name": str(tmp_path)})
    assert [p.field for p in check_inputs(spec)] == ["tokenizer_name", "train_file", "validation_file"]
    assert Problem("train_file", "is empty; give a file with text") in check_inputs(spec)


def test_the_spec_does_not_import_torch() -> None:
    code = "import sys, trainer.spec.config, trainer.spec.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
