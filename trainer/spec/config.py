"""Owns the typed training spec. Must not import torch: the API and the worker import this module."""

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, cast

from pydantic import Field, model_validator

from trainer.spec.model_shape import Activation, LongformerShape, Spec, past_positions, read_model_config, refuse

DeviceType = Literal["npu", "cuda", "cpu"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_torch_npu_fused"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Masking = Literal["token", "whole_word", "ngram", "ngram_recipe"]
Source = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]


class TrainConfig(Spec):
    """What to train, named as Hugging Face's TrainingArguments and run_mlm.py name things.

    One class is the API's schema, the JSON in the database and, as RunConfig, what the ranks read.
    Exactly one of model_name_or_path, config_name and from_scratch says which model.
    """

    model_name_or_path: Source | None = Field(
        default=None,
        description="Pretrained Longformer: a directory with config.json and model.safetensors, or a hub name.",
    )
    config_name: Source | None = Field(
        default=None, description="A directory with a Longformer config.json to train from random weights."
    )
    from_scratch: LongformerShape | None = Field(
        default=None, description="The size of a Longformer to train from random weights."
    )
    tokenizer_name: Source | None = Field(
        default=None,
        description="A directory with vocab.json and merges.txt, or tokenizer.json. Default: model_name_or_path.",
    )
    hidden_act: Activation | None = Field(
        default=None,
        description="Replaces the model's activation (the recipe uses gelu_python). Default: the model's own.",
    )

    train_file: Source = Field(description="Text to train on, UTF-8: .txt or .jsonl, also .gz or .zst.")
    validation_file: Source | None = Field(
        default=None, description="Text to evaluate on, UTF-8. Needed when do_eval is true."
    )
    max_seq_length: int = Field(
        default=512, ge=4, le=131072, description="Tokens in a sequence, special tokens included."
    )
    line_by_line: bool = Field(
        default=False,
        description="Each line is a sequence. Otherwise lines are joined and cut into max_seq_length pieces.",
    )
    pad_to_max_length: bool = Field(
        default=False, description="Pad every sequence to max_seq_length. Otherwise to the longest in its batch."
    )
    packing: bool = Field(
        default=False,
        description="Put several sequences into one row of max_seq_length; none sees another. For short lines.",
    )
    group_by_length: bool = Field(
        default=False, description="Batch sequences of like length, so that little is padding."
    )
    masking: Masking = Field(
        default="token",
        description="What is masked as one: a token, a whole word, or spans of 1 to 3 tokens. ngram_recipe begins spans "
        "at mlm_probability, as the recipe does, and so masks half as many tokens again: see masked_rate.",
    )
    mlm_probability: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that are masked.")

    num_train_epochs: float = Field(default=3.0, gt=0, le=10_000, description="Passes over train_file.")
    max_steps: int = Field(
        default=-1, ge=-1, le=100_000_000, description="Optimizer steps; replaces num_train_epochs when > 0."
    )
    per_device_train_batch_size: int = Field(
        default=8, ge=1, le=4096, description="Sequences a device takes at a time."
    )
    per_device_eval_batch_size: int = Field(
        default=8, ge=1, le=4096, description="Sequences a device evaluates at a time."
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=4096, description="Batches in one optimizer step.")
    learning_rate: float = Field(default=5e-5, ge=0, le=10, description="Peak learning rate.")
    lr_scheduler_type: Schedule = Field(default="linear", description="How the learning rate goes after the warm-up.")
    warmup_steps: int = Field(
        default=0, ge=0, le=100_000_000, description="Steps over which the learning rate rises from 0."
    )
    warmup_ratio: float = Field(default=0.0, ge=0, le=1, description="The warm-up as a share of all steps.")
    optim: Optimizer = Field(
        default="adamw_torch_fused",
        description="adamw_torch_npu_fused is NpuFusedAdamW on an NPU, and torch's fused AdamW elsewhere.",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="AdamW's decay; not on biases and layer norms.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's beta1.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's beta2.")
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1, description="AdamW's epsilon.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, le=1e6, description="Clip the gradient's norm to this; 0 clips nothing."
    )
    bf16: bool = Field(default=False, description="bfloat16 mixed precision.")
    fp16: bool = Field(default=False, description="float16 mixed precision with loss scaling; not on cpu.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in backward: less memory, slower."
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="Decides weights, order, masks and dropout.")

    do_eval: bool = Field(default=True, description="Evaluate before the first and after the last step: perplexity.")
    eval_steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Also evaluate every so many steps.")
    logging_steps: int = Field(default=10, ge=1, le=1_000_000, description="Report every so many steps.")
    save_steps: int = Field(default=500, ge=1, le=100_000_000, description="Write a checkpoint every so many steps.")
    save_total_limit: int = Field(
        default=2, ge=1, le=1000, description="Newest checkpoints kept, beside the best of those evaluated."
    )
    save_total_limit_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        le=1 << 50,
        description="Disk that the checkpoints of an attempt may take at any moment. The oldest go first, the best last.",
    )
    dataloader_num_workers: int = Field(
        default=0, ge=0, le=64, description="Loader processes a rank; 0 loads in the rank."
    )
    dataloader_pin_memory: bool = Field(default=True, description="Page-locked host memory for copies to a device.")
    cpu_affinity: bool = Field(
        default=True, description="Each rank of a host keeps to its own share of the host's cores."
    )

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        given = [name for name in MODEL_FIELDS if getattr(self, name) is not None]
        if not given:
            raise refuse(
                "model_name_or_path", None, "is missing: give it, or config_name or from_scratch for a new model"
            )
        if len(given) > 1:
            raise refuse(given[1], getattr(self, given[1]), f"cannot be given beside {given[0]}; leave one of them out")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_steps == 0:
            raise refuse("max_steps", 0, "must be -1 (use num_train_epochs) or at least 1")
        if self.warmup_steps and self.warmup_ratio:
            raise refuse("warmup_ratio", self.warmup_ratio, "cannot be given beside warmup_steps; leave one at 0")
        if self.bf16 and self.fp16:
            raise refuse("fp16", True, "cannot be given beside bf16; choose one")
        if self.do_eval and self.validation_file is None:
            raise refuse("validation_file", None, "is missing: give it, or set do_eval to false")
        if self.eval_steps is not None and not self.do_eval:
            raise refuse("eval_steps", self.eval_steps, "has no effect while do_eval is false; remove it")
        if self.packing and self.group_by_length:
            raise refuse("group_by_length", True, "has no effect beside packing; choose one")
        if self.tokenizer_name is None and self.model_name_or_path is None:
            raise refuse("tokenizer_name", None, "is missing: a new model brings no tokenizer, so name one")
        return self

    @model_validator(mode="after")
    def _fits_positions(self) -> Self:
        if self.from_scratch is not None:
            message = past_positions(self.max_seq_length, self.from_scratch.max_position_embeddings)
            if message:
                raise refuse("max_seq_length", self.max_seq_length, message + ", or raise max_position_embeddings")
        return self


class CheckpointRef(Spec):
    """A checkpoint to resume from. With the manifest's hash nothing else is opened; a run by hand may leave it out."""

    dir: str = Field(min_length=1, description="A directory checkpoints/step-<n> of a run.")
    manifest_sha256: str | None = Field(
        default=None, description="Of its manifest.json; null trusts the manifest that is there."
    )

    @model_validator(mode="before")
    @classmethod
    def _is_no_bare_path(cls, value: object) -> object:
        if isinstance(value, str):
            raise refuse("dir", value, 'is wanted by its name: write {"dir": "…/checkpoints/step-<n>"}')
        return value

    @model_validator(mode="after")
    def _is_a_hash(self) -> Self:
        if self.manifest_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.manifest_sha256):
            raise refuse(
                "manifest_sha256",
                self.manifest_sha256,
                "is not 64 digits of 0-9a-f; give the one that metrics.jsonl tells, "
                "or leave it out to trust the manifest as it stands",
            )
        return self


class RunConfig(TrainConfig):
    """What one rank reads: the spec and the facts of its launch. The run directory is the file's directory."""

    device_type: DeviceType = Field(default="cpu", description="The accelerator of every rank.")
    rendezvous: str | None = Field(
        default=None,
        pattern=r"^file:///",
        description="Where ranks meet: file:///…, or null for the environment's address.",
    )
    resume_from_checkpoint: CheckpointRef | None = Field(default=None, description="Continue exactly from here.")
    cpu_threads: int | None = Field(
        default=None, ge=1, le=1024, description="Threads of a rank; null leaves torch's choice."
    )
    cache_dir: str | None = Field(
        default=None, description="Where tokenized corpora are kept for other jobs; null: in the run directory."
    )
    allow_network: bool = Field(default=False, description="Hub names may be downloaded.")

    @model_validator(mode="after")
    def _precision_fits_device(self) -> Self:
        if self.fp16 and self.device_type == "cpu":
            raise refuse("fp16", True, "does not run on cpu; use bf16 or neither")
        return self


MODEL_FIELDS = ("model_name_or_path", "config_name", "from_scratch")
INPUT_FIELDS = ("model_name_or_path", "config_name", "tokenizer_name", "train_file", "validation_file")


class Problem(NamedTuple):
    """Something wrong with one field of a spec, in words that say the way out."""

    field: str
    message: str


def kind_of(value: str) -> Literal["asset", "hub", "path"]:
    """What a source names: an uploaded asset, a repository on the hub, or a file or directory.

    Paths are told from hub names by their start: `/`, `./`, `../` or `~`; `a/b/c` and `x.txt/` are paths too.
    """
    if value.startswith("asset:"):
        return "asset"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", value):
        return "hub"
    return "path"


def inputs(train: TrainConfig) -> dict[str, str]:
    """The fields of a spec that name input files or directories, with their values; unset ones are left out."""
    values = {name: cast(str | None, getattr(train, name)) for name in INPUT_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def check_inputs(train: TrainConfig, *, allow_network: bool = False) -> list[Problem]:
    """What this machine's files say against a spec, [] when nothing does. Reads only config.json files.

    The caller has decided that the paths may be looked at. Files are not opened, so bad text is found later.
    """
    problems: list[Problem] = []
    for field, value in inputs(train).items():
        message = _check_source(field, value, allow_network)
        if message:
            problems.append(Problem(field, message))
    if not problems:
        problems += _check_model_directory(train)
    return problems


def _check_source(field: str, value: str, allow_network: bool) -> str | None:
    is_text = field in ("train_file", "validation_file")
    kind = kind_of(value)
    if kind == "asset":
        return "names an asset, and uploaded assets cannot be used yet; give a path"
    if kind == "hub" and not is_text:
        if allow_network or Path(value).is_dir():
            return None
        return (
            f"{value!r} is a name on the hub and the network is closed; "
            "give a directory that holds it, or have the operator allow the network"
        )
    path = Path(value)
    if is_text:
        if not path.is_file():
            return "is not a file; give the path of a UTF-8 text file"
        return None if path.stat().st_size else "is empty; give a file with text"
    if not path.is_dir():
        return "is not a directory; give the directory that holds its files"
    if field == "tokenizer_name":
        return _check_tokenizer(path)
    return None if (path / "config.json").is_file() else "has no config.json"


def _check_tokenizer(directory: Path) -> str | None:
    if (directory / "tokenizer.json").is_file():
        return None
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return None
    return "holds neither tokenizer.json nor vocab.json with merges.txt; give a tokenizer's directory"


def _check_model_directory(train: TrainConfig) -> list[Problem]:
    field = "model_name_or_path" if train.model_name_or_path is not None else "config_name"
    value = train.model_name_or_path or train.config_name
    if value is None or not Path(value).is_dir():
        return []
    directory = Path(value)
    try:
        config = read_model_config(directory / "config.json")
    except ValueError as error:
        return [Problem(field, str(error))]
    problems: list[Problem] = []
    if train.model_name_or_path is not None and not _has_safetensors(directory):
        problems.append(Problem(field, _say_missing_weights(directory)))
    if train.tokenizer_name is None:
        message = _check_tokenizer(directory)
        if message:
            problems.append(Problem("tokenizer_name", f"is not given, and {field} {message}"))
    message = past_positions(train.max_seq_length, config["max_position_embeddings"])
    if message:
        problems.append(Problem("max_seq_length", message))
    return problems


def _has_safetensors(directory: Path) -> bool:
    return (directory / "model.safetensors").is_file() or (directory / "model.safetensors.index.json").is_file()


def _say_missing_weights(directory: Path) -> str:
    if (directory / "pytorch_model.bin").is_file():
        return (
            "has its weights as a pickle (pytorch_model.bin), which is never opened; run `longyard convert` on it first"
        )
    return "has no model.safetensors; to train from random weights give it as config_name"
