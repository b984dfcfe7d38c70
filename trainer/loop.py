"""Owns the training of one rank, from its config to its output: load, step, evaluate, save."""

import hashlib
import json
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer import checkpoint, corpus, data, model, tokenizer
from trainer.config import RunConfig, TrainConfig
from trainer.data import Batch, Rows
from trainer.device import Device, seed_all
from trainer.errors import BadInput, Diverged, Stopped
from trainer.report import Reporter
from trainer.schedule import learning_rate
from trainer.stop import StopWish
from trainer.tally import WARM_STEPS, Step, Sums, Window
from trainer.tokenizer import Vocabulary

_EVAL_BATCHES_A_CHECK = 8


def run(config: RunConfig, directory: Path, device: Device, reporter: Reporter, wish: StopWish) -> None:
    """Trains as the config says and leaves output/ in the run directory.

    Raises TrainerError: Stopped after a SIGTERM, with a checkpoint if a step was done.
    """
    reporter.phase("load")
    source = config.tokenizer_name or config.model_name_or_path
    assert source is not None
    vocabulary = tokenizer.load(model.locate(source, allow_network=config.allow_network))
    train_set = _read(config.train_file, "train_file", config, vocabulary, directory, reporter)
    eval_set = None
    if config.do_eval:
        assert config.validation_file is not None
        eval_set = _read(config.validation_file, "validation_file", config, vocabulary, directory, reporter)
    reporter.passed("data")
    trainer = Trainer(config, directory, device, reporter, wish, vocabulary, train_set, eval_set)
    if config.resume_from_checkpoint is not None:
        trainer.resume()
    reporter.passed("model")
    wish.defer()
    trainer.train()
    trainer.save_output()
    reporter.phase("end")


class Trainer:
    """One rank's model, optimizer and position in the data."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        device: Device,
        reporter: Reporter,
        wish: StopWish,
        vocabulary: Vocabulary,
        train_set: Rows,
        eval_set: Rows | None,
    ) -> None:
        self.config, self.directory, self.device = config, directory, device
        self.reporter, self.wish, self.vocabulary = reporter, wish, vocabulary
        self.train_set, self.eval_set = train_set, eval_set
        self.network = model.build(config, vocabulary)
        inner = model.MaskedLanguageModel(self.network, device.type, packing=config.packing).to(device.torch_device)
        self.module = _over_ranks(inner, device)
        self.parameters = [p for p in inner.parameters() if p.requires_grad]
        self.optimizer = device.optimizer(_decay_groups(inner, config.weight_decay), config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.fp16)
        self.steps_per_epoch = data.steps_per_epoch(train_set, config, device.place)
        self.total_steps = _total_steps(config, self.steps_per_epoch)
        self.sums, self.window = Sums(), Window()
        self.saved_step = 0
        self.steps_here = 0
        self.perplexity: float | None = None
        self.eval_loss: float | None = None
        size = sum(p.numel() for p in self.network.parameters())
        reporter.say(
            f"{size:,} weights, {inner.attention} attention on {device.type}; "
            f"{len(train_set.sequences):,} sequences in {len(train_set):,} rows, "
            f"{self.total_steps:,} steps of {data.global_batch_size(config, device.place)} rows"
        )

    def resume(self) -> None:
        """Takes weights, optimizer, position and sums from the checkpoint that the config names."""
        reference = self.config.resume_from_checkpoint
        assert reference is not None
        state = checkpoint.read(reference, self.network, self.optimizer)
        if state["global_batch_size"] != data.global_batch_size(self.config, self.device.place):
            self._keep_global_batch(state["global_batch_size"])
        if state["num_rows"] != len(self.train_set):
            raise BadInput(
                f"resume_from_checkpoint: it was trained on {state['num_rows']} rows, train_file and the spec now give "
                f"{len(self.train_set)}; keep both the same"
            )
        self.sums, self.window = Sums(**state["sums"]), Window(**state["window"])
        self.scaler.load_state_dict(state["scaler"])
        self.saved_step = self.sums.step
        self.reporter.say(f"resumed at step {self.sums.step} from {reference.dir}")

    def _keep_global_batch(self, rows: int) -> None:
        """On another number of ranks the same rows make a step, by accumulating more or fewer batches."""
        size, ranks = self.config.per_device_train_batch_size, self.device.place.world_size
        if rows % (size * ranks):
            raise BadInput(
                f"resume_from_checkpoint: its steps have {rows} rows, which {ranks} ranks cannot take in batches of "
                f"{size}; choose another per_device_train_batch_size or number of devices"
            )
        self.config = self.config.model_copy(update={"gradient_accumulation_steps": rows // (size * ranks)})
        self.steps_per_epoch = data.steps_per_epoch(self.train_set, self.config, self.device.place)
        self.total_steps = _total_steps(self.config, self.steps_per_epoch)
        self.reporter.say(
            f"{ranks} ranks now: {self.config.gradient_accumulation_steps} batches a step keep its {rows} rows; "
            "rows, masks and learning rates go on as they were, what dropout drops does not"
        )

    def train(self) -> None:
        """Every step from here to the last, with its evaluations, reports and checkpoints."""
        self.reporter.plan(self.total_steps, step=self.sums.step)
        if self._evaluate_if_due():
            self.reporter.passed("evaluate")
        self.reporter.phase("train")
        steps = range(self.sums.step, self.total_steps)
        batches = data.train_batches(self.train_set, self.vocabulary, self.config, self.device, steps=steps)
        started = time.perf_counter()
        for accumulated in batches:
            data_s = time.perf_counter() - started
            step = self._step(accumulated)
            now = time.perf_counter()
            self._count(step, now - started, data_s)
            started = now
            self._report_if_due(step)
            if self.sums.step % self.config.save_steps == 0 or self.sums.step == self.total_steps:
                self._save_checkpoint()
            spent = time.perf_counter()
            self.sums.train_s += spent - started
            if self._evaluate_if_due():
                self.reporter.phase("train")
            started = time.perf_counter()

    def save_output(self) -> None:
        """Writes output/ under another name, then renames it; results.json is in it."""
        self.reporter.phase("save")
        if not self.device.place.is_first:
            return
        temporary, target = self.directory / "output.tmp", self.directory / "output"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        model.save(self.network, self.vocabulary, temporary)
        results = self._results()
        (temporary / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        self.reporter.say(f"output: {target}")

    def _step(self, accumulated: list[Batch]) -> Step:
        """One optimizer step over the accumulated batches of all ranks.

        The loss is divided by the label tokens of all of them, so it does not depend on how they are split up.
        """
        device, config = self.device, self.config
        labels, tokens, samples, asked = device.sum(
            [
                sum(batch.num_labels for batch in accumulated),
                sum(batch.num_tokens for batch in accumulated),
                sum(batch.num_samples for batch in accumulated),
                self.wish.is_asked(),
            ]
        )
        if asked:
            self._stop()
        rate = learning_rate(self.sums.step, self.total_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_all(config.seed, self.sums.step, device.place.rank)
        # DDP averages gradients over ranks, hence its factor.
        scale = device.place.world_size / max(1, labels)
        loss_sum = torch.zeros((), device=device.torch_device)
        for number, batch in enumerate(accumulated, 1):
            with self._without_sync(number < len(accumulated)):
                with device.autocast(config):
                    loss = self.module(batch.to(device))
                self.scaler.scale(loss * scale).backward()
            loss_sum += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm or math.inf)
        (total,) = device.sum([float(loss_sum)])
        step = Step(total / max(1, labels), float(norm), int(labels), int(tokens), int(samples))
        self._check_finite(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        device.synchronize()
        return step

    def _without_sync(self, wanted: bool) -> Any:
        if wanted and isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()

    def _check_finite(self, step: Step) -> None:
        # With fp16 an infinite gradient only means that the loss scale is too large; the scaler skips the step.
        if math.isfinite(step.loss) and (self.config.fp16 or math.isfinite(step.grad_norm)):
            return
        number = self.sums.step + 1
        self.reporter.metrics(number, {"loss": step.loss, "grad_norm": step.grad_norm})
        raise Diverged(
            f"step {number}: loss {step.loss}, gradient norm {step.grad_norm}; "
            "try a lower learning_rate, a warm-up, or bf16 instead of fp16"
        )

    def _count(self, step: Step, step_s: float, data_s: float) -> None:
        self.steps_here += 1
        rows = data.global_batch_size(self.config, self.device.place)
        self.sums.add(step, step_s, rows if self.steps_here > WARM_STEPS else None)
        self.window.add(step, step_s, data_s)
        self.reporter.stepped(self.sums.step)

    def _report_if_due(self, step: Step) -> None:
        due = self.sums.step % self.config.logging_steps == 0
        if not (due or self.sums.step in (1, self.total_steps)):
            return
        values = {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": step.grad_norm,
            "epoch": self.sums.step / self.steps_per_epoch,
            "memory_bytes": self.device.peak_memory_bytes(),
        }
        self.reporter.metrics(self.sums.step, self.window.values() | values)
        self.window = Window()

    def _evaluate_if_due(self) -> bool:
        step, every = self.sums.step, self.config.eval_steps
        due = step in (0, self.total_steps) or (every is not None and step % every == 0)
        if self.eval_set is None or not due or (self.sums.evaluated_step == step and step < self.total_steps):
            return False
        self.reporter.phase("evaluate")
        self.eval_loss = self._evaluate(self.eval_set)
        self.perplexity = _perplexity(self.eval_loss)
        self.sums.evaluated_step = step
        best = self.sums.best_eval_loss
        if self.saved_step == step and (best is None or self.eval_loss < best):
            self.sums.best_eval_loss, self.sums.best_step = self.eval_loss, step
        if step == 0:
            self.sums.initial_perplexity = self.perplexity
        self.reporter.metrics(step, {"eval_loss": self.eval_loss, "perplexity": self.perplexity})
        return True

    @torch.no_grad()
    def _evaluate(self, rows: Rows) -> float:
        """The mean cross entropy of the masked tokens, the same ones each time."""
        self.module.eval()
        inner = cast(model.MaskedLanguageModel, getattr(self.module, "module", self.module))
        loss_sum, labels = 0.0, 0
        batches = data.eval_batches(rows, self.vocabulary, self.config, self.device)
        for number, batch in enumerate(batches):
            if number % _EVAL_BATCHES_A_CHECK == 0 and self.device.sum([self.wish.is_asked()])[0]:
                self._stop()
            with self.device.autocast(self.config):
                loss_sum += float(inner(batch.to(self.device)))
            labels += batch.num_labels
        self.module.train()
        loss_sum, labels = self.device.sum([loss_sum, labels])
        if not labels:
            raise BadInput("validation_file: too little text: not one token of it was masked")
        return loss_sum / labels

    def _stop(self) -> None:
        step = self.sums.step
        if step == 0:
            raise Stopped("stopped before the first step; there is nothing to save")
        if self.saved_step != step:
            self._save_checkpoint()
        raise Stopped(f"stopped at step {step}; a checkpoint was written")

    def _save_checkpoint(self) -> None:
        self.saved_step = self.sums.step
        if not self.device.place.is_first:
            return
        # The others wait for it at the next step: whoever watches them must know why.
        self.reporter.phase("save")
        parent = self.directory / "checkpoints"
        state = {
            "global_batch_size": data.global_batch_size(self.config, self.device.place),
            "num_rows": len(self.train_set),
            "sums": asdict(self.sums),
            "window": asdict(self.window),
            "scaler": self.scaler.state_dict(),
        }
        published = checkpoint.write(parent, self.sums.step, self.network, self.optimizer, state)
        self.reporter.checkpoint(self.sums.step, *published)
        resumed = self.config.resume_from_checkpoint
        spared = {parent / f"step-{self.sums.best_step}", Path(resumed.dir if resumed else parent)}
        checkpoint.prune(parent, self.config.save_total_limit, spared)
        self.reporter.phase("train")

    def _results(self) -> dict[str, Any]:
        place = self.device.place
        return {
            "perplexity": self.perplexity,
            "eval_loss": self.eval_loss,
            **self.sums.results(),
            "epochs": self.sums.step / self.steps_per_epoch,
            "global_batch_size": data.global_batch_size(self.config, place),
            "world_size": place.world_size,
            "device_type": self.device.type,
            "train_data": self.train_set.sequences.digest,
            "validation_data": self.eval_set.sequences.digest if self.eval_set else None,
            "config_sha256": _digest(self.config),
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
        }


def _read(
    name: str, field: str, config: RunConfig, vocabulary: Vocabulary, directory: Path, reporter: Reporter
) -> Rows:
    cache = Path(config.cache_dir) if config.cache_dir else directory / "tokens"
    return data.arrange(corpus.read(Path(name), field, config, vocabulary, cache, reporter.say), config)


def _over_ranks(inner: nn.Module, device: Device) -> nn.Module:
    if device.place.world_size == 1:
        return inner
    return DistributedDataParallel(inner, device_ids=None if device.type == "cpu" else [device.torch_device])


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and layer norms, which have one dimension, are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * steps_per_epoch))


def _digest(config: RunConfig) -> str:
    """Of what was asked for, without the facts of one launch."""
    spec = config.model_dump(mode="json", include=set(TrainConfig.model_fields))
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
