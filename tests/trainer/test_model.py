"""The model's loss: where logits are computed, how rows are packed, what is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.trainer.conftest import Inputs
from trainer import model
from trainer.data import dataset, loader, sampler, tokenizer
from trainer.data.loader import EVALUATION_EPOCH, Batch
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device
from trainer.dist_env import Place
from trainer.errors import BadInput
from trainer.spec.config import RunConfig

Spec = Callable[..., dict[str, Any]]
CPU = Device("cpu", torch.device("cpu"), Place(0, 0, 1))


@pytest.fixture
def vocabulary(inputs: Inputs) -> Vocabulary:
    return tokenizer.load(inputs.tokenizer)


def losses(config: RunConfig, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any) -> tuple[Any, list[Batch], float]:
    sequences = dataset.read(inputs.validation_file, "f", config, vocabulary, tmp_path, lambda _: None)
    ours = model.MaskedLanguageModel(model.build(config, vocabulary), "cpu", packing=config.packing).eval()
    batches = list(loader.eval_batches(sampler.arrange(sequences, config), vocabulary, config, CPU))
    with torch.no_grad():
        total = sum(float(ours(batch)) for batch in batches)
    return ours, batches, total


@pytest.mark.parametrize("line_by_line", [True, False])
def test_the_loss_is_stocks(
    spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any, line_by_line: bool
) -> None:
    config = RunConfig.model_validate(spec(line_by_line=line_by_line))
    ours, batches, total = losses(config, vocabulary, inputs, tmp_path)
    from transformers.models.longformer.modeling_longformer import LongformerForMaskedLM

    torch.manual_seed(0)
    stock = LongformerForMaskedLM(ours.network.config).eval()
    stock.load_state_dict(ours.network.state_dict())
    expected = 0.0
    for batch in batches:
        labels = torch.full(batch.input_ids_BL.shape, loader.IGNORED).flatten()
        labels[batch.label_positions_M] = batch.labels_M
        with torch.no_grad():
            # Stock numbers positions from the ids, and takes a random <pad> for padding: it is told the positions.
            logits = stock(
                batch.input_ids_BL, attention_mask=(batch.segments_BL > 0).long(), position_ids=batch.position_ids_BL
            ).logits
        expected += float(cross_entropy(logits.flatten(0, 1), labels, reduction="sum"))
    assert total == pytest.approx(expected, rel=1e-5)


def test_packing_changes_no_loss(spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any) -> None:
    options = {"line_by_line": True, "max_seq_length": 64}
    apart = RunConfig.model_validate(spec(**options))
    packed = RunConfig.model_validate(spec(packing=True, **options))
    _, alone, expected = losses(apart, vocabulary, inputs, tmp_path)
    _, together, total = losses(packed, vocabulary, inputs, tmp_path)
    assert sum(b.num_labels for b in alone) == sum(b.num_labels for b in together)
    assert total == pytest.approx(expected, rel=1e-5)


def test_filled_up_labels_change_no_loss(spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any) -> None:
    config = RunConfig.model_validate(spec(pad_to_max_length=True))
    ours, batches, _ = losses(config, vocabulary, inputs, tmp_path)
    filled = loader._MaskedRows(
        sampler.arrange(_sequences(config, vocabulary, inputs, tmp_path), config), vocabulary, config, True
    )
    batch = filled.__getitems__([(EVALUATION_EPOCH, i) for i in range(config.per_device_eval_batch_size)])
    assert len(batch.labels_M) == sampler.label_capacity(batch.num_labels, batch.input_ids_BL.numel(), 0.15)
    assert batch.num_labels == batches[0].num_labels < len(batch.labels_M)
    with torch.no_grad():
        assert float(ours(batch)) == pytest.approx(float(ours(batches[0])), rel=1e-6)


def _sequences(config: RunConfig, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any) -> dataset.Sequences:
    return dataset.read(inputs.validation_file, "f", config, vocabulary, tmp_path, lambda _: None)


def test_every_trained_weight_gets_a_gradient(
    spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any
) -> None:
    config = RunConfig.model_validate(spec(gradient_checkpointing=True))
    ours, batches, _ = losses(config, vocabulary, inputs, tmp_path)
    ours.train()
    ours(batches[0]).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == ("_global." not in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_checkpointed_activations_give_the_same_gradients(
    spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Any
) -> None:
    from tests.trainer.conftest import WITH_DROPOUT

    gradients: list[list[torch.Tensor]] = []
    for checkpointing in (False, True):
        config = RunConfig.model_validate(spec(from_scratch=WITH_DROPOUT, gradient_checkpointing=checkpointing))
        ours, batches, _ = losses(config, vocabulary, inputs, tmp_path)
        ours.train()
        torch.manual_seed(9)
        ours(batches[0]).backward()
        gradients.append([p.grad for p in ours.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_weights_that_cannot_be_read_name_their_field(
    spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Path
) -> None:
    model.save(model.build(RunConfig.model_validate(spec()), vocabulary), vocabulary, tmp_path)
    config = RunConfig.model_validate(spec(model_name_or_path=str(tmp_path), from_scratch=None))
    model.build(config, vocabulary)
    weights = tmp_path / "model.safetensors"
    for content in (b"\xff" * 1000, weights.read_bytes()[:-100], b""):
        weights.write_bytes(content)
        with pytest.raises(BadInput, match=r"model_name_or_path: .* cannot be loaded"):
            model.build(config, vocabulary)
