"""Owns which self-attention a Longformer runs with. The rest of the trainer does not know which one it is."""

from typing import Any, NamedTuple


class Attention(NamedTuple):
    """An installed implementation: its name, and what a sequence's length must be a multiple of."""

    name: str
    length_multiple: int


def install(model: Any, device_type: str) -> Attention:
    """Resolves the implementation for a device once and puts it into every layer of a LongformerForMaskedLM."""
    # The stock sliding chunks cut a sequence into whole windows.
    return Attention("stock", max(model.config.attention_window))
