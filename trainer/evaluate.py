"""Owns the measure of a model on text it is not trained on: the mean cross entropy of masked tokens."""

from collections.abc import Callable

import torch

from trainer.data import loader
from trainer.data.sampler import Rows
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device
from trainer.errors import BadInput
from trainer.model import MaskedLanguageModel
from trainer.spec.config import RunConfig

_BATCHES_A_CHECK = 8


@torch.no_grad()
def mean_loss(
    model: MaskedLanguageModel,
    rows: Rows,
    vocabulary: Vocabulary,
    config: RunConfig,
    device: Device,
    *,
    check: Callable[[], None],
) -> float:
    """Over all ranks, of the same masked tokens each time. `check` is called by all ranks now and then; it may raise.

    Raises BadInput when not one token of the text was masked.
    """
    model.eval()
    loss_sum, labels = 0.0, 0
    for number, batch in enumerate(loader.eval_batches(rows, vocabulary, config, device)):
        if number % _BATCHES_A_CHECK == 0:
            check()
        with device.autocast(config):
            loss_sum += float(model(batch.to(device)))
        labels += batch.num_labels
    model.train()
    total_loss, total_labels = device.sum([loss_sum, labels])
    if not total_labels:
        raise BadInput("validation_file: too little text: not one token of it was masked")
    return total_loss / total_labels
