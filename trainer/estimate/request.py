"""Owns what a spec will take before it takes any of it: steps, tokens, parameters, memory, disk. Must not import torch.

`python -P -m trainer.estimate.request` answers one Request on stdin with one Estimate on stdout. It opens files that anyone may
have written, so it confines itself: memory, time, no files written. Whoever starts it should expect it to die of them.
"""

import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from trainer.errors import BadInput
from trainer.estimate import memory as sizes
from trainer.estimate.memory import Batch
from trainer.spec.config import DeviceType, Spec, TrainConfig, kind_of
from trainer.spec.model_shape import ModelSize, read_model_size

LIMIT_S = 20
_MEMORY_BYTES = 2 << 30
_REQUEST_BYTES = 1 << 20
_LEAST_VOCABULARY = 5
# Any of these says that a repository of the hub was fetched once.
_HUB_FILES = ("config.json", "tokenizer.json", "vocab.json")


class Figure(BaseModel):
    """A number and how sure it is: counted, from a sample, from a model of the trainer, or unknown; `why` it is not exact."""

    model_config = ConfigDict(frozen=True)

    value: int | None
    sure: Literal["exact", "sampled", "modelled", "unknown"]
    why: str | None


class MemoryParts(BaseModel):
    """Bytes on one device, each at its largest; they are not all there at the same time."""

    model_config = ConfigDict(frozen=True)

    libraries: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int


class Estimate(BaseModel):
    """Of a whole training, but for `sequences` and `rows`, which are those of one pass. `slots` are tokens and padding."""

    model_config = ConfigDict(frozen=True)

    parameters: Figure
    sequences: Figure
    rows: Figure
    global_batch: Figure
    steps: Figure
    tokens: Figure
    slots: Figure
    memory_bytes: Figure
    memory_parts: MemoryParts | None
    checkpoint_bytes: Figure
    checkpoints_bytes: Figure


class Request(Spec):
    """What to estimate; without a device type what depends on it stays unknown."""

    train: TrainConfig
    num_devices: int
    device_type: DeviceType | None


def unknown(why: str) -> Estimate:
    """An estimate of nothing."""
    nothing = Figure(value=None, sure="unknown", why=why)
    return Estimate(memory_parts=None, **{name: nothing for name in Estimate.model_fields if name != "memory_parts"})


def estimate(train: TrainConfig, *, num_devices: int, device_type: DeviceType | None) -> Estimate:
    """What the files on this machine say; what they do not is unknown, with a reason. Never raises for bad files."""
    vocabulary, vocabulary_why = _vocabulary(train)
    size, size_why = _size(train, vocabulary, vocabulary_why)
    text = _survey(train, vocabulary, vocabulary_why, num_devices=num_devices, device_type=device_type)
    steps = _steps(train, text)
    disk, kept = _disk(train, size, size_why, steps)
    memory = _memory(train, size, text, num_devices=num_devices, device_type=device_type)
    parameters = None if size is None else sizes.parameters(size).total
    return Estimate(
        parameters=_figure(parameters, "exact", size_why),
        sequences=text.sequences,
        rows=text.rows,
        global_batch=_figure(
            num_devices * train.per_device_train_batch_size * train.gradient_accumulation_steps, "exact"
        ),
        steps=steps,
        tokens=text.tokens,
        slots=text.slots,
        memory_bytes=_figure(None if memory is None else memory.peak, "modelled", _memory_why(size_why, device_type)),
        memory_parts=None if memory is None else MemoryParts.model_validate(memory._asdict(), extra="ignore"),
        checkpoint_bytes=disk,
        checkpoints_bytes=kept,
    )


def least_checkpoint_bytes(train: TrainConfig) -> int:
    """What one checkpoint takes at least, from the spec and the model's config.json alone; 0 where these do not say it.

    Cheap enough to ask before every launch: a model made from scratch is counted with a vocabulary of special tokens only.
    """
    if train.from_scratch is not None:
        shape = train.from_scratch.model_dump(include=set(ModelSize._fields))
        return sizes.checkpoint_bytes(ModelSize(**shape, vocab_size=_LEAST_VOCABULARY, type_vocab_size=1))
    source = train.model_name_or_path or train.config_name
    if source is None or kind_of(source) != "path":
        return 0
    try:
        return sizes.checkpoint_bytes(read_model_size(Path(source) / "config.json"))
    except (ValueError, OSError):
        return 0


def main() -> int:
    """Reads the request, answers it. Exit codes: 0, and whatever its limits end it with."""
    _confine()
    request = Request.model_validate_json(sys.stdin.buffer.read(_REQUEST_BYTES))
    answer = estimate(request.train, num_devices=request.num_devices, device_type=request.device_type)
    sys.stdout.write(answer.model_dump_json())
    return 0


def _confine() -> None:
    """Before anything of a user is opened. The alarm ends even a library that never comes back to Python."""
    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_REQUEST_BYTES, _REQUEST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    # Where memory runs out all the same, this is the process to end.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Threads reserve address space, and there would be as many as there are cores.
    os.environ.update(
        OPENBLAS_NUM_THREADS="1", RAYON_NUM_THREADS="4", TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1"
    )


class _Text(NamedTuple):
    """What was found out of the corpus."""

    sequences: Figure
    rows: Figure
    steps: Figure
    tokens: Figure
    slots: Figure
    largest_batch: Batch | None


def _vocabulary(train: TrainConfig) -> tuple[Any, str | None]:
    """The tokenizer, or why there is none."""
    source = train.tokenizer_name or train.model_name_or_path
    assert source is not None
    directory = _locate(source)
    if directory is None:
        return None, _absent("the tokenizer", source)
    # numpy and tokenizers come only to the process that counts.
    from trainer.data import tokenizer

    try:
        return tokenizer.load(directory), None
    except (BadInput, OSError) as error:
        return None, str(error)


def _size(train: TrainConfig, vocabulary: Any, vocabulary_why: str | None) -> tuple[ModelSize | None, str | None]:
    if train.from_scratch is not None:
        if vocabulary is None:
            return None, vocabulary_why
        shape = train.from_scratch.model_dump(include=set(ModelSize._fields))
        return ModelSize(**shape, vocab_size=vocabulary.size, type_vocab_size=1), None
    source = train.model_name_or_path or train.config_name
    assert source is not None
    directory = _locate(source)
    if directory is None:
        return None, _absent("the model", source)
    try:
        return read_model_size(directory / "config.json"), None
    except (ValueError, OSError) as error:
        return None, str(error)


def _survey(
    train: TrainConfig, vocabulary: Any, vocabulary_why: str | None, *, num_devices: int, device_type: DeviceType | None
) -> _Text:
    path = Path(train.train_file)
    if vocabulary is None:
        return _unread(f"train_file cannot be counted: {vocabulary_why}")
    if not path.is_file():
        return _unread(_absent("train_file", train.train_file))
    from trainer.dist_env import Place
    from trainer.estimate import corpus_stats

    try:
        lengths = corpus_stats.read(path, "train_file", train, vocabulary)
    except (BadInput, OSError) as error:
        return _unread(str(error))
    if not len(lengths.lengths_N):
        return _unread(f"train_file: {path} has no text in it")
    # A device that wants fixed shapes pads more: without knowing which, the other kind is assumed.
    found = corpus_stats.count(lengths, train, Place(0, 0, num_devices), fixes_shapes=device_type == "npu")
    why = None if lengths.is_whole else f"from {lengths.share:.2%} of train_file's bytes"
    sure = "exact" if lengths.is_whole else "sampled"
    last = why or "the last pass over the text is not a whole one"
    drawn = why or "batches are padded to their longest row; those of the first pass stand for all"
    return _Text(
        sequences=_figure(found.sequences, sure, why),
        rows=_figure(found.rows, sure, why),
        steps=_figure(found.steps, sure, why),
        tokens=_figure(found.tokens, *((sure, why) if found.ends_with_a_pass else ("sampled", last))),
        slots=_figure(found.slots, *((sure, why) if found.fills_slots_alike else ("sampled", drawn))),
        largest_batch=found.largest_batch,
    )


def _unread(why: str) -> _Text:
    nothing = _figure(None, "exact", why)
    return _Text(nothing, nothing, nothing, nothing, nothing, None)


def _steps(train: TrainConfig, text: _Text) -> Figure:
    return _figure(train.max_steps, "exact") if train.max_steps > 0 else text.steps


def _disk(train: TrainConfig, size: ModelSize | None, why: str | None, steps: Figure) -> tuple[Figure, Figure]:
    """One checkpoint; and as many as are there at most, one among them that is being written."""
    if size is None:
        nothing = _figure(None, "modelled", why)
        return nothing, nothing
    one = sizes.checkpoint_bytes(size)
    kept = train.save_total_limit + 1
    if train.do_eval and train.eval_steps is not None:
        # The best of those evaluated stays beside the newest.
        kept += 1
    if steps.value is not None:
        kept = min(kept, math.ceil(steps.value / train.save_steps))
    most = kept * one
    if train.save_total_limit_bytes is not None:
        # The newest stays whatever it takes, until the next one is whole.
        most = min(most, max(train.save_total_limit_bytes, 2 * one))
    said = "from the parameters; what else a checkpoint holds is a few kilobytes"
    return _figure(one, "modelled", said), _figure(most, "modelled", said)


def _memory(
    train: TrainConfig, size: ModelSize | None, text: _Text, *, num_devices: int, device_type: DeviceType | None
) -> sizes.Memory | None:
    if size is None or device_type is None:
        return None
    batch = text.largest_batch
    if batch is None:
        rows, length = train.per_device_train_batch_size, train.max_seq_length
        batch = Batch(rows, length, math.ceil(rows * length * train.mlm_probability))
    return sizes.memory(size, train, batch, num_devices=num_devices, device_type=device_type)


def _memory_why(size_why: str | None, device_type: DeviceType | None) -> str:
    if size_why is not None:
        return size_why
    if device_type is None:
        return "it depends on the kind of device that the job gets"
    if device_type == "cpu":
        return "of one process; measured peaks were within 20 %"
    return f"from what the trainer keeps for backward; never measured on {device_type}"


def _locate(source: str) -> Path | None:
    """The directory on this machine that a name stands for. A relative one is a name on the hub, fetched or not."""
    if kind_of(source) == "path":
        return Path(source) if Path(source).is_dir() else None
    if kind_of(source) != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(source, name) for name in _HUB_FILES)
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def _absent(what: str, source: str) -> str:
    kind = ", a name on the hub," if kind_of(source) == "hub" else ""
    return f"{what} {source!r}{kind} is not on this machine"


def _figure(value: int | None, sure: Literal["exact", "sampled", "modelled"], why: str | None = None) -> Figure:
    return Figure(value=value, sure="unknown" if value is None else sure, why=why)
