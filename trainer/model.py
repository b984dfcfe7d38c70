"""Owns the model: where it comes from, its masked-language-modelling loss, how it is saved.

Shapes: B sequences, L tokens, E hidden size, M labelled tokens, V vocabulary.
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import logging as transformers_logging
from transformers.models.longformer.configuration_longformer import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM

from trainer.attention import dropout, module
from trainer.data.loader import IGNORED, Batch
from trainer.data.tokenizer import Vocabulary
from trainer.device import seed_all
from trainer.errors import BadInput
from trainer.spec.config import RunConfig, kind_of
from trainer.spec.model_shape import RESERVED_POSITIONS

_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "vocab.json", "merges.txt", "tokenizer*.json"]


class MaskedLanguageModel(nn.Module):
    """A Longformer whose forward gives the summed loss of a batch's labelled tokens.

    Its own head: transformers computes logits for every token, and a mean per batch that is wrong as soon as
    there is more than one batch to a step.
    """

    def __init__(self, network: LongformerForMaskedLM, device_type: str, *, packing: bool) -> None:
        super().__init__()
        self.network = network
        self.packing = packing
        self.attention = module.install(network, device_type)
        dropout.install(network, device_type)
        for name, parameter in network.named_parameters():
            # Masked language modelling has no global tokens, so these would never get a gradient.
            if "_global." in name:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The cross entropy of the labelled tokens, summed, fp32: 0-dimensional."""
        hidden_BLE = self._encode(batch)
        hidden_ME = hidden_BLE.flatten(0, 1).index_select(0, batch.label_positions_M)
        logits_MV = self.network.lm_head(hidden_ME)
        return F.cross_entropy(logits_MV.float(), batch.labels_M, ignore_index=IGNORED, reduction="sum")

    def _encode(self, batch: Batch) -> torch.Tensor:
        # Not LongformerModel.forward: it builds an L×L mask only to take its first row.
        body = self.network.longformer
        module.separate(self.network, batch.segments_BL, packed=self.packing)
        embedded_BLE = body.embeddings(input_ids=batch.input_ids_BL, position_ids=batch.position_ids_BL)
        # The layers read the sign alone: below zero is masked, zero is local attention.
        signs_BL = (batch.segments_BL > 0).to(embedded_BLE.dtype) - 1
        output = body.encoder(embedded_BLE, attention_mask=signs_BL, return_dict=True)
        return output.last_hidden_state


def locate(name: str, *, allow_network: bool) -> Path:
    """The directory a model or tokenizer name stands for; a hub name is downloaded if that is allowed.

    Raises BadInput when it is not there.
    """
    if Path(name).is_dir():
        return Path(name)
    if kind_of(name) != "hub":
        raise BadInput(f"{name} is not a directory on this host")
    if not allow_network:
        raise BadInput(f"{name!r} is a name on the hub and the network is closed; give a directory that holds it")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_HUB_FILES))


def build(config: RunConfig, vocabulary: Vocabulary) -> LongformerForMaskedLM:
    """The model a spec names, in fp32 on the CPU; new weights depend on the seed alone.

    Raises BadInput when the model does not fit the tokenizer or the sequence length.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    directory = _directory(config)
    shape = _shape(config, directory, vocabulary)
    _check_shape(shape, config, vocabulary)
    seed_all(config.seed)
    if config.model_name_or_path is None:
        network = LongformerForMaskedLM(shape)
    else:
        assert directory is not None
        network = _load(directory, shape)
    if config.gradient_checkpointing:
        network.activation_checkpointing_enable()
    return network


def save(network: LongformerForMaskedLM, vocabulary: Vocabulary, directory: Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer, as transformers and this trainer load them."""
    network.save_pretrained(directory)
    vocabulary.save(directory)


def _directory(config: RunConfig) -> Path | None:
    name = config.model_name_or_path or config.config_name
    return None if name is None else locate(name, allow_network=config.allow_network)


def _shape(config: RunConfig, directory: Path | None, vocabulary: Vocabulary) -> LongformerConfig:
    if directory is not None:
        try:
            shape = LongformerConfig.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # any broken config.json, whatever the library makes of it
            raise BadInput(f"the model config in {directory} cannot be read: {error}") from error
    else:
        assert config.from_scratch is not None
        shape = LongformerConfig(
            **config.from_scratch.model_dump(),
            vocab_size=vocabulary.size,
            type_vocab_size=1,
            bos_token_id=vocabulary.bos,
            pad_token_id=vocabulary.pad,
            eos_token_id=vocabulary.eos,
            sep_token_id=vocabulary.eos,
        )
    if config.hidden_act is not None:
        shape.hidden_act = config.hidden_act
    return shape


def _check_shape(shape: LongformerConfig, config: RunConfig, vocabulary: Vocabulary) -> None:
    if vocabulary.size > shape.vocab_size:
        raise BadInput(
            f"tokenizer_name: the tokenizer has {vocabulary.size} tokens, the model only {shape.vocab_size}; "
            "give the tokenizer the model was trained with"
        )
    if vocabulary.pad != shape.pad_token_id:
        raise BadInput(f"tokenizer_name: pad token {vocabulary.pad}, but the model's is {shape.pad_token_id}")
    positions = shape.max_position_embeddings - max(RESERVED_POSITIONS, vocabulary.pad + 1)
    if config.max_seq_length > positions:
        raise BadInput(f"max_seq_length: {config.max_seq_length} is past the model's {positions} positions")


def _load(directory: Path, shape: LongformerConfig) -> LongformerForMaskedLM:
    try:
        network, info = cast(
            tuple[LongformerForMaskedLM, dict[str, Any]],
            LongformerForMaskedLM.from_pretrained(
                directory,
                config=shape,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            ),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"model_name_or_path: {directory} cannot be loaded: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("lm_head."))
    if missing:
        raise BadInput(f"model_name_or_path: {directory} lacks {len(missing)} weights, {missing[0]} among them")
    return network
