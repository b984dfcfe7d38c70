from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM

from trainer.convert_weights import ConvertError, convert


@pytest.fixture
def network() -> LongformerForMaskedLM:
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        attention_window=4, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    return LongformerForMaskedLM(config).eval()


def test_the_same_model_comes_out(network: LongformerForMaskedLM, tmp_path: Path) -> None:
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    assert "model.safetensors" in convert(tmp_path)
    loaded = LongformerForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, network(tokens).logits)


def test_shards_are_joined(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "one.bin")
    torch.save({"b": torch.zeros(2, 2)}, tmp_path / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(tmp_path)
    assert {name: tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()} == {
        "a": (3,),
        "b": (2, 2),
    }


class Bomb:
    """A pickle that runs a command when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def test_a_pickle_that_runs_code_does_not_run_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ConvertError):
        convert(tmp_path)
    torch.save({"a": Bomb(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="run code"):
        convert(tmp_path)
    assert not marker.exists()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(1)], {1: torch.ones(1)}])
def test_what_is_no_models_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="not a model's weights"):
        convert(tmp_path)


def test_what_is_no_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all")
    with pytest.raises(ConvertError, match=r"pytorch_model\.bin"):
        convert(tmp_path)


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "sub/x.bin"])
def test_an_index_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConvertError, match="outside its directory"):
        convert(tmp_path)


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="move it away"):
        convert(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def test_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "convert"]
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (refused.returncode, "holds no pytorch_model.bin" in refused.stderr) == (1, True)
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, "1 tensors, 6 weights" in done.stdout) == (0, True), done.stderr
