"""What an estimate says, against what the trainer then does: parameters, steps, memory, disk."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM

from tests.trainer.conftest import ROOT, SHAPE, Inputs, Ranks
from trainer.data import dataset, loader, sampler, tokenizer
from trainer.device import Device
from trainer.dist_env import Place
from trainer.estimate import corpus_stats, memory
from trainer.estimate import request as estimate
from trainer.spec.config import RunConfig, TrainConfig
from trainer.spec.model_shape import ModelSize

Spec = Callable[..., dict[str, Any]]
HOW = [
    {"pad_to_max_length": True, "line_by_line": True},
    {},
    {"line_by_line": True, "packing": True},
    {"line_by_line": True, "group_by_length": True},
]


def train_of(spec: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate({name: value for name, value in spec.items() if name in TrainConfig.model_fields})


def told(spec: dict[str, Any], *, num_devices: int = 1, device_type: Any = "cpu") -> estimate.Estimate:
    return estimate.estimate(train_of(spec), num_devices=num_devices, device_type=device_type)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 999, "max_position_embeddings": 130, "type_vocab_size": 1},
        {"tie_word_embeddings": False},
    ],
)
def test_parameters_are_those_of_the_model(changes: dict[str, Any]) -> None:
    fields = SHAPE | {"vocab_size": 300} | changes
    network = LongformerForMaskedLM(LongformerConfig(**fields))
    size = {name: fields.get(name, default) for name, default in ModelSize._field_defaults.items()}
    found = memory.parameters(ModelSize(**size))
    named = dict(network.named_parameters())
    trained = {name: p for name, p in named.items() if "_global." not in name}
    assert found == (
        sum(p.numel() for p in named.values()),
        sum(p.numel() for p in trained.values()),
        len(named),
        len(trained),
    )


def test_a_directory_s_model_is_counted_from_its_config(spec: Spec, tmp_path: Path) -> None:
    config = LongformerConfig(**SHAPE, vocab_size=400)
    LongformerForMaskedLM(config).save_pretrained(tmp_path)
    found = told(spec(from_scratch=None, config_name=str(tmp_path)))
    assert found.parameters.value == sum(p.numel() for p in LongformerForMaskedLM(config).parameters())
    assert found.parameters.sure == "exact"


@pytest.mark.parametrize("options", HOW)
@pytest.mark.parametrize("world_size", [1, 3])
def test_steps_rows_and_tokens_are_those_the_trainer_plans(
    spec: Spec, tmp_path: Path, options: dict[str, Any], world_size: int
) -> None:
    """Two passes: what the trainer's own batches add up to, over all ranks."""
    asked = spec(**options, max_steps=-1, num_train_epochs=1.0, gradient_accumulation_steps=2)
    config = RunConfig.model_validate(asked)
    vocabulary = tokenizer.load(Path(asked["tokenizer_name"]))
    sequences = dataset.read(Path(asked["train_file"]), "train_file", config, vocabulary, tmp_path, lambda _: None)
    rows = sampler.arrange(sequences, config)
    steps = sampler.total_steps(sampler.steps_per_epoch(rows, config, Place(0, 0, world_size)), config)
    tokens = slots = 0
    for rank in range(world_size):
        here = Device("cpu", None, Place(rank, rank, world_size))
        for accumulated in loader.train_batches(rows, vocabulary, config, here, steps=range(steps)):
            tokens += sum(batch.num_tokens for batch in accumulated)
            slots += sum(batch.input_ids_BL.numel() for batch in accumulated)
    found = told(asked, num_devices=world_size)
    assert (found.sequences.value, found.rows.value) == (len(sequences), len(rows))
    assert (found.steps.value, found.steps.sure) == (steps, "exact")
    assert (found.tokens.value, found.tokens.sure) == (tokens, "exact")
    assert found.slots.value == slots
    assert found.slots.sure == ("exact" if config.pad_to_max_length else "sampled")
    assert found.global_batch.value == sampler.global_batch_size(config, Place(0, 0, world_size))


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
@pytest.mark.parametrize("options", HOW)
def test_a_sample_comes_near(spec: Spec, inputs: Inputs, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """A plain file may become ever wordier; of a compressed one the beginning has to do."""
    lines = inputs.train_file.read_text(encoding="utf-8").splitlines()
    grows = not name.endswith("gz")
    text = "".join(f"{line[: 40 + number // 4 * grows]}\n" for number, line in enumerate(lines * 15)).encode()
    path = tmp_path / name
    path.write_bytes(text if grows else gzip.compress(text))
    asked = spec(**options)
    vocabulary = tokenizer.load(inputs.tokenizer)
    train = train_of(asked)
    all_of_it = corpus_stats.read(path, "train_file", train, vocabulary)
    assert all_of_it.is_whole
    part = corpus_stats.read(path, "train_file", train, vocabulary, whole=len(text) // 4)
    assert part.share < 0.5
    place = Place(0, 0, 1)
    expected, found = (corpus_stats.count(x, train, place, fixes_shapes=False) for x in (all_of_it, part))
    assert found.rows == pytest.approx(expected.rows, rel=0.1)
    assert found.tokens == pytest.approx(expected.tokens, rel=0.1)


def test_what_is_not_here_is_unknown_and_why(spec: Spec, inputs: Inputs, tmp_path: Path) -> None:
    hub = told(spec(from_scratch=None, model_name_or_path="longyard/no-such-model", max_steps=-1))
    assert (hub.parameters.value, hub.parameters.sure) == (None, "unknown")
    assert "'longyard/no-such-model', a name on the hub, is not on this machine" in (hub.parameters.why or "")
    assert hub.memory_bytes.why == hub.checkpoint_bytes.why == hub.parameters.why
    assert hub.steps.sure == "exact", "the text and the tokenizer are here"
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"good\nb\xffd\n")
    text = told(spec(train_file=str(broken), max_steps=-1))
    assert text.steps.why == f"train_file: {broken}:2: not UTF-8 at byte 1"
    assert text.parameters.sure == "exact"
    assert text.memory_bytes.sure == "modelled", "as if batches were full"
    assert told(spec(train_file=str(broken))).steps.value == 6, "max_steps says it"
    assert told(spec(), device_type=None).memory_bytes.why == "it depends on the kind of device that the job gets"


def test_it_confines_itself(spec: Spec) -> None:
    """As a process: it answers, has neither torch nor transformers, and takes neither endless memory nor endless time."""
    request = estimate.Request(train=train_of(spec()), num_devices=2, device_type="npu").model_dump_json()
    code = (
        "import signal, sys; from trainer.estimate import request; code = request.main(); left = signal.alarm(0)\n"
        "assert 0 < left <= request.LIMIT_S and not {'torch', 'transformers'} & set(sys.modules)\n"
        "try: bytearray(3 << 30)\nexcept MemoryError: sys.exit(code)\nsys.exit('there was memory')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=request.encode(),
        capture_output=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert estimate.Estimate.model_validate_json(done.stdout) == told(spec(), num_devices=2, device_type="npu")


def test_checkpoints_on_disk(spec: Spec, forked: Callable[..., Ranks], tmp_path: Path) -> None:
    asked = spec(save_steps=2, max_steps=6, save_total_limit=1)
    ranks = forked(Ranks(tmp_path / "run", asked, 1, start=False))
    (kept,) = [path for path in (ranks.directory / "checkpoints").iterdir() if path.is_dir()]
    found = told(asked)
    assert found.checkpoint_bytes.value == pytest.approx(sum(f.stat().st_size for f in kept.iterdir()), rel=0.02)
    assert found.checkpoints_bytes.value == 2 * (found.checkpoint_bytes.value or 0), "one kept, one being written"
    assert told(asked | {"save_steps": 500}).checkpoints_bytes.value == found.checkpoint_bytes.value
    many = told(asked | {"save_total_limit": 3, "eval_steps": 1, "save_steps": 1, "max_steps": 100})
    assert many.checkpoints_bytes.value == 5 * (found.checkpoint_bytes.value or 0), "the best one stays too"
    bounded = told(asked | {"save_total_limit": 99, "save_total_limit_bytes": 1 << 20, "max_steps": 1000})
    assert bounded.checkpoints_bytes.value == max(1 << 20, 2 * (found.checkpoint_bytes.value or 0))


MEASURED = {
    "packed": {"layers": 2, "width": 128, "per_device_train_batch_size": 16, "packing": True, "line_by_line": True},
    "recomputed": {"layers": 4, "width": 256, "per_device_train_batch_size": 8, "gradient_checkpointing": True},
    "plain": {"layers": 6, "width": 512, "per_device_train_batch_size": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_within_a_fifth_of_the_measured_peak(
    name: str, spec: Spec, launch: Callable[[str, dict[str, Any]], Ranks]
) -> None:
    """Two steps in a process of its own, whose peak the trainer reports itself: the second one has all there is to have."""
    case = dict(MEASURED[name])
    layers, width = case.pop("layers"), case.pop("width")
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    windows = {"num_attention_heads": width // 64, "attention_window": 64, "max_position_embeddings": 258}
    asked = spec(**case, from_scratch=shape | windows, max_seq_length=256, max_steps=2, do_eval=False)
    ranks = launch(name, asked).succeed()
    peak = max(ranks.series("memory_bytes").values())
    found = told(asked)
    print(json.dumps({"measured": peak, **found.model_dump(include={"memory_bytes", "memory_parts"})}))
    assert found.memory_bytes.value == pytest.approx(peak, rel=0.2)
