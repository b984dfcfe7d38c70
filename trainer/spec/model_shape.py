"""Owns the size of a Longformer: the schema of a new one, and what an existing config.json may say. Must not import torch."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Activation = Literal[
    "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh"
]

# RoBERTa and Longformer number positions from pad_token_id + 1, and the pad token is 1 in both.
RESERVED_POSITIONS = 2
MODEL_CONFIG_LIMIT_BYTES = 1 << 20


class Spec(BaseModel):
    """What every part of a spec is: strict, frozen, without unknown fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=False
    )


class LongformerShape(Spec):
    """The size of a Longformer that starts from random weights; the vocabulary comes from the tokenizer."""

    num_hidden_layers: int = Field(default=12, ge=1, le=96, description="Transformer layers.")
    hidden_size: int = Field(default=768, ge=8, le=8192, description="Width; a multiple of num_attention_heads.")
    num_attention_heads: int = Field(default=12, ge=1, le=128, description="Attention heads in each layer.")
    intermediate_size: int = Field(default=3072, ge=8, le=65536, description="Width of the feed-forward layers.")
    attention_window: int = Field(
        default=512, ge=2, le=8192, multiple_of=2, description="Tokens each token sees, half on each side. Even."
    )
    max_position_embeddings: int = Field(
        default=4098, ge=8, le=131074, description="Positions plus the two that RoBERTa reserves: 4098 for 4096 tokens."
    )
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1, description="Dropout after each sub-layer.")
    attention_probs_dropout_prob: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout on attention probabilities."
    )
    initializer_range: float = Field(default=0.02, gt=0, le=1, description="Standard deviation of the initial weights.")
    layer_norm_eps: float = Field(default=1e-5, gt=0, le=1e-2, description="Epsilon of the layer norms.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise refuse(
                "hidden_size",
                self.hidden_size,
                f"is not a multiple of num_attention_heads ({self.num_attention_heads}); change either",
            )
        return self


class ModelSize(NamedTuple):
    """A whole model's size, whether it is new or has a config.json; the defaults are LongformerConfig's."""

    vocab_size: int = 30522
    num_hidden_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True


def past_positions(max_seq_length: int, max_position_embeddings: int) -> str | None:
    """What is wrong with a length that a model has no positions for; None when it fits."""
    positions = max_position_embeddings - RESERVED_POSITIONS
    if max_seq_length <= positions:
        return None
    return f"is past the model's {positions} positions; set it to {positions} or less"


def read_model_config(path: Path) -> dict[str, int]:
    """The max_position_embeddings of a Longformer's config.json. Raises ValueError, in words, for any other file."""
    return {"max_position_embeddings": cast(int, _checked_fields(path)["max_position_embeddings"])}


def read_model_size(path: Path) -> ModelSize:
    """The size a Longformer's config.json gives. Raises ValueError as `read_model_config` does."""
    fields = _checked_fields(path)
    types = fields.get("type_vocab_size", 2)
    if type(types) is not int or not 1 <= types <= 10_000:
        raise ValueError("config.json has no usable type_vocab_size (1 to 10,000)")
    known = {name: fields[name] for name in ModelSize._fields if name in fields}
    return ModelSize(**cast(dict[str, Any], known))


def refuse(field: str, value: object, message: str) -> ValidationError:
    """An error whose location is the field itself: pydantic puts a model validator's own errors at the root."""
    # The message carries braces only as data, hence the context.
    error = PydanticCustomError("spec", "{field} {message}", {"field": field, "message": message})
    return ValidationError.from_exception_data("TrainConfig", [InitErrorDetails(type=error, loc=(field,), input=value)])


def _checked_fields(path: Path) -> dict[str, object]:
    if path.stat().st_size > MODEL_CONFIG_LIMIT_BYTES:
        raise ValueError("config.json is larger than 1 MiB, so it is no model's config")
    try:
        config: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError("config.json is not JSON") from None
    if not isinstance(config, dict):
        raise ValueError("config.json is not a JSON object")
    fields = cast(dict[str, object], config)
    if fields.get("model_type") != "longformer":
        raise ValueError("config.json says another model_type than longformer; give a Longformer")
    for name in ("auto_map", "trust_remote_code", "_attn_implementation", "_attn_implementation_internal"):
        if name in fields:
            raise ValueError(f"config.json has {name}, which names code to run; remove it")
    positions = fields.get("max_position_embeddings")
    if type(positions) is not int or not 8 <= positions <= 131074:
        raise ValueError("config.json has no usable max_position_embeddings (8 to 131074)")
    _check_shape(fields)
    return fields


def _check_shape(fields: dict[str, object]) -> None:
    """A model's own config.json is held to what `from_scratch` is held to."""
    windows = fields.get("attention_window", 512)
    layers = fields.get("num_hidden_layers", 12)
    listed = cast(list[object], windows) if isinstance(windows, list) else [windows]
    if isinstance(windows, list) and len(listed) != layers:
        raise ValueError(f"config.json gives attention_window for {len(listed)} layers and has {layers}")
    shared = {name: fields[name] for name in LongformerShape.model_fields if name in fields}
    for window in listed:
        try:
            LongformerShape.model_validate(shared | {"attention_window": window})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"config.json has an unusable {first['loc'][0]}: {first['msg'].lower()}") from None
    if fields.get("hidden_act", "gelu") not in get_args(Activation):
        raise ValueError(f"config.json has an unknown hidden_act; known are {', '.join(get_args(Activation))}")
    if fields.get("pad_token_id", 1) != 1:
        raise ValueError("config.json has another pad_token_id than 1, from which its positions are counted")
    vocabulary = fields.get("vocab_size", 30522)
    if type(vocabulary) is not int or not 5 <= vocabulary <= 10_000_000:
        raise ValueError("config.json has no usable vocab_size (5 to 10,000,000)")
