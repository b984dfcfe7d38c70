"""Owns what a Longformer takes: its parameters, its memory on a device while it trains, its bytes on disk. Pure arithmetic.

Shapes: B rows, L tokens, M labelled tokens, V vocabulary; width and inner width are those of the hidden and of the
feed-forward layers. Memory is modelled from what autograd keeps of each layer; the tests hold it against measured peaks.
"""

import math
from typing import NamedTuple

from trainer.spec.config import TrainConfig
from trainer.spec.model_shape import ModelSize

_FLOAT, _HALF = 4, 2
_MIB = 1 << 20
# What a process holds of Python, torch and its libraries, or a device of its runtime, before there is any model.
LIBRARIES_BYTES = {"cpu": 450 * _MIB, "cuda": 600 * _MIB, "npu": 600 * _MIB}
# On a CPU the C library's allocator keeps holes between tensors that come and go: measured, 1.36 to 1.52 of what they need.
_HOLES = {"cpu": 1.4}
# Of the inner activations, how many an activation function has autograd keep, what the next layer reads among them.
_INNER_KEPT = {"relu": 1, "tanh": 1, "quick_gelu": 3, "gelu_python": 4, "gelu_new": 5, "gelu_fast": 7}
_INNER_KEPT_ELSE = 2
# An entry of safetensors' header: a name, a type, a shape and two offsets.
_HEADER_BYTES = 128
_STATE_BYTES, _STATE_BYTES_A_TENSOR = 3_000, 40


class Parameters(NamedTuple):
    """Numbers and tensors of a model; masked language modelling does not train the global projections."""

    total: int
    trained: int
    num_tensors: int
    num_trained_tensors: int


class Batch(NamedTuple):
    """The largest batch a device computes at a time, and how many of its tokens are predicted."""

    rows: int
    length: int
    labels: int


class Memory(NamedTuple):
    """Bytes on one device. `peak` is less than the sum of the others: they are not all there at the same time."""

    libraries: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int


def parameters(size: ModelSize) -> Parameters:
    """As transformers' LongformerForMaskedLM has them, without its pooler."""
    width, inner, layers = size.hidden_size, size.intermediate_size, size.num_hidden_layers
    square = width * width + width
    embeddings = (size.vocab_size + size.max_position_embeddings + size.type_vocab_size) * width + 2 * width
    layer = 7 * square + 2 * width * inner + inner + width + 4 * width
    head = square + 2 * width + size.vocab_size
    untied = 0 if size.tie_word_embeddings else size.vocab_size * width + size.vocab_size
    total = embeddings + layers * layer + head + untied
    tensors = 5 + 22 * layers + 5 + (0 if size.tie_word_embeddings else 2)
    return Parameters(total, total - 3 * layers * square, tensors, tensors - 6 * layers)


def memory(size: ModelSize, train: TrainConfig, batch: Batch, *, num_devices: int, device_type: str) -> Memory:
    """What one of `num_devices` devices, or one process on a CPU, takes at its peak."""
    counts = parameters(size)
    mixed = train.bf16 or train.fp16
    weights = counts.total * _FLOAT
    # Mixed precision keeps a copy of every matrix from forward to backward.
    copies = counts.trained * _HALF if mixed else 0
    gradients = counts.trained * _FLOAT
    # Across ranks they are summed in copies, which are there from the beginning.
    buckets = gradients if num_devices > 1 else 0
    optimizer = counts.trained * 2 * _FLOAT
    kept, while_layer = _activations(size, train, batch, device_type)
    logits = _logits(size, batch, mixed=mixed)
    embedding = size.vocab_size * size.hidden_size * _FLOAT
    # Gradients of a step's first batch come one by one, as activations go; of its further batches they are all there.
    # NpuFusedAdamW never lets go of them.
    keeps = device_type == "npu" and train.optim == "adamw_torch_npu_fused"
    held = gradients if keeps or train.gradient_accumulation_steps > 1 else 0
    at_head = kept + logits + max(held, embedding)
    in_layers = kept + while_layer + max(held, embedding)
    at_end = gradients + while_layer
    fixed = LIBRARIES_BYTES[device_type] + weights + optimizer + buckets
    peak = fixed + math.ceil(max(copies + at_head, copies + in_layers, at_end) * _HOLES.get(device_type, 1.0))
    return Memory(
        LIBRARIES_BYTES[device_type], weights + copies, gradients + buckets, optimizer, kept + while_layer, logits, peak
    )


def checkpoint_bytes(size: ModelSize) -> int:
    """Weights and optimizer state as `checkpoint.write` lays them out."""
    counts = parameters(size)
    optimizer = counts.trained * 2 * _FLOAT + counts.num_trained_tensors * _FLOAT
    headers = (counts.num_tensors + 3 * counts.num_trained_tensors) * _HEADER_BYTES
    state = _STATE_BYTES + counts.num_trained_tensors * _STATE_BYTES_A_TENSOR
    return counts.total * _FLOAT + optimizer + headers + state


def _activations(size: ModelSize, train: TrainConfig, batch: Batch, device_type: str) -> tuple[int, int]:
    """What is kept from forward to backward, and what comes on top while a layer is gone back through."""
    tokens = batch.rows * batch.length
    width, inner = tokens * size.hidden_size, tokens * size.intermediate_size
    act = _INNER_KEPT.get(train.hidden_act or size.hidden_act, _INNER_KEPT_ELSE)
    if train.bf16 or train.fp16:
        # Half: three inputs of the projections, queries, keys, values, what attention gives, the input of the inner
        # layer. Single: what the two layer norms are made of.
        layer = width * (8 * _HALF + 2 * _FLOAT) + inner * act * _HALF
    else:
        # Queries, keys, values, what attention gives; the two layer norms' inputs and results.
        layer = width * 8 * _FLOAT + inner * act * _FLOAT
    layer += width * (0 if device_type == "cpu" else _FLOAT)
    # The projection of queries is scaled first, into a copy.
    layer += size.hidden_size * size.hidden_size * _FLOAT
    backward = 2 * inner * _FLOAT + 2 * width * _FLOAT
    embeddings = 2 * width * _FLOAT
    if train.gradient_checkpointing:
        return embeddings + size.num_hidden_layers * width * _FLOAT, layer + backward
    return embeddings + size.num_hidden_layers * layer, backward


def _logits(size: ModelSize, batch: Batch, *, mixed: bool) -> int:
    """At the loss: its logarithms, their gradient and that of the logits, beside what the head itself keeps."""
    head = batch.labels * size.hidden_size * 4 * _FLOAT
    return head + batch.labels * size.vocab_size * (3 * _FLOAT + (_HALF if mixed else 0))
