"""Owns the training of one rank, from its config to its output: load, step, evaluate, save."""

import json
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from trainer import atomic_files, checkpoint, evaluate, model, results
from trainer.data import dataset, loader, sampler, tokenizer
from trainer.data.loader import Batch
from trainer.data.sampler import Rows
from trainer.data.tokenizer import Vocabulary
from trainer.device import Device, seed_all
from trainer.errors import BadInput, Diverged, Stopped
from trainer.metrics import WARM_STEPS, Step, Sums, Window, perplexity
from trainer.optimizer import Optimizer
from trainer.report import Reporter
from trainer.schedule import learning_rate
from trainer.signals import StopWish
from trainer.spec.config import RunConfig

# Steps in a row that fp16 may leave out for an infinite gradient: a loss scale of 65,536 halved so often is nothing.
MAX_SKIPPED = 100


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
        self.model = model.MaskedLanguageModel(self.network, device.type, packing=config.packing)
        self.module = device.over_ranks(self.model.to(device.torch_device))
        self.optimizer = Optimizer(self.model, config, device)
        self.steps_per_epoch = sampler.steps_per_epoch(train_set, config, device.place)
        self.total_steps = sampler.total_steps(self.steps_per_epoch, config)
        self.sums, self.window = Sums(), Window()
        self.saved_step = 0
        self.steps_here = self.skipped = 0
        size = sum(p.numel() for p in self.network.parameters())
        reporter.say(
            f"{size:,} weights, {self.model.attention} attention on {device.type}; "
            f"{len(train_set.sequences):,} sequences in {len(train_set):,} rows, "
            f"{self.total_steps:,} steps of {sampler.global_batch_size(config, device.place)} rows"
        )

    def resume(self) -> None:
        """Takes weights, optimizer, position and sums from the checkpoint that the config names."""
        reference = self.config.resume_from_checkpoint
        assert reference is not None
        state = checkpoint.read(reference, self.network, self.optimizer.adamw)
        if state["global_batch_size"] != sampler.global_batch_size(self.config, self.device.place):
            self._keep_global_batch(state["global_batch_size"])
        if (state["train_data"], state["num_rows"]) != (self.train_set.sequences.digest, len(self.train_set)):
            raise BadInput(
                f"resume_from_checkpoint: it was trained on {state['num_rows']} rows of other text, or text cut in another "
                f"way, than the {len(self.train_set)} that train_file and the spec now give; keep them as they were"
            )
        self._tell_what_changed(state["order"])
        self.sums, self.window = Sums(**state["sums"]), Window(**state["window"])
        self.optimizer.restore_scaling(state["scaler"])
        self.saved_step = self.sums.step
        self.reporter.say(f"resumed at step {self.sums.step} from {reference.dir}")

    def _tell_what_changed(self, order: dict[str, Any]) -> None:
        changed = [name for name, value in _order(self.config).items() if order[name] != value]
        if changed:
            self.reporter.say(
                f"other than in the checkpoint: {', '.join(changed)}. Rows and masks from here on are not those of one "
                "uninterrupted run: of this pass some rows may come twice, and some not at all"
            )

    def _keep_global_batch(self, rows: int) -> None:
        """On another number of ranks the same rows make a step, by accumulating more or fewer batches."""
        size, ranks = self.config.per_device_train_batch_size, self.device.place.world_size
        if rows % (size * ranks):
            raise BadInput(
                f"resume_from_checkpoint: its steps have {rows} rows, which {ranks} ranks cannot take in batches of "
                f"{size}; choose another per_device_train_batch_size or number of devices"
            )
        self.config = self.config.model_copy(update={"gradient_accumulation_steps": rows // (size * ranks)})
        self.steps_per_epoch = sampler.steps_per_epoch(self.train_set, self.config, self.device.place)
        self.total_steps = sampler.total_steps(self.steps_per_epoch, self.config)
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
        batches = loader.train_batches(self.train_set, self.vocabulary, self.config, self.device, steps=steps)
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
        (temporary / "results.json").write_text(json.dumps(self._results(), indent=1), encoding="utf-8")
        atomic_files.publish(temporary, target)
        self.reporter.say(f"output: {target}")

    def _step(self, accumulated: list[Batch]) -> Step:
        """One optimizer step over the accumulated batches of all ranks.

        The loss is divided by the label tokens of all of them, so it does not depend on how they are split up.
        """
        device, config = self.device, self.config
        labels, tokens, samples, specials, asked = device.sum(
            [
                sum(batch.num_labels for batch in accumulated),
                sum(batch.num_tokens for batch in accumulated),
                sum(batch.num_samples for batch in accumulated),
                sum(batch.num_specials for batch in accumulated),
                self.wish.is_asked(),
            ]
        )
        if asked:
            self._stop()
        seed_all(config.seed, self.sums.step, device.place.rank)
        # DDP averages gradients over ranks, hence its factor.
        scale = device.place.world_size / max(1, labels)
        loss_sum = torch.zeros((), device=device.torch_device)
        for number, batch in enumerate(accumulated, 1):
            with self._without_sync(number < len(accumulated)):
                with device.autocast(config):
                    loss = self.module(batch.to(device))
                self.optimizer.backward(loss * scale)
            loss_sum += loss.detach()
        norm = self.optimizer.clip()
        (total,) = device.sum([float(loss_sum)])
        step = Step(total / max(1, labels), norm, int(labels), int(tokens), int(samples), int(specials))
        self._check_finite(step)
        self.optimizer.step(learning_rate(self.sums.step, self.total_steps, config))
        device.synchronize()
        return step

    def _without_sync(self, wanted: bool) -> Any:
        if wanted and isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()

    def _check_finite(self, step: Step) -> None:
        # With fp16 an infinite gradient only means that the loss scale is too large; the scaler skips the step and halves it.
        self.skipped = 0 if math.isfinite(step.grad_norm) else self.skipped + 1
        may_skip = self.config.fp16 and self.skipped <= MAX_SKIPPED
        if math.isfinite(step.loss) and (self.skipped == 0 or may_skip):
            return
        number = self.sums.step + 1
        self.reporter.metrics(number, {"loss": step.loss, "grad_norm": step.grad_norm})
        raise Diverged(
            f"step {number}: loss {step.loss}, gradient norm {step.grad_norm}; "
            "try a lower learning_rate, a warm-up, or bf16 instead of fp16"
        )

    def _count(self, step: Step, step_s: float, data_s: float) -> None:
        self.steps_here += 1
        self.sums.add(step, step_s, is_warm=self.steps_here > WARM_STEPS)
        self.window.add(step, step_s, data_s)
        self.reporter.stepped(self.sums.step)

    def _report_if_due(self, step: Step) -> None:
        due = self.sums.step % self.config.logging_steps == 0
        if not (due or self.sums.step in (1, self.total_steps)):
            return
        values = {
            "learning_rate": self.optimizer.rate,
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
        loss = evaluate.mean_loss(
            self.model, self.eval_set, self.vocabulary, self.config, self.device, check=self._stop_if_asked
        )
        self.sums.evaluated(loss, is_saved=0 < step == self.saved_step)
        self.reporter.metrics(step, {"eval_loss": loss, "perplexity": perplexity(loss)})
        return True

    def _stop_if_asked(self) -> None:
        if self.device.sum([self.wish.is_asked()])[0]:
            self._stop()

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
        parent, keep = self.directory / "checkpoints", self._keep()
        state = {
            "global_batch_size": sampler.global_batch_size(self.config, self.device.place),
            "num_rows": len(self.train_set),
            "train_data": self.train_set.sequences.digest,
            "order": _order(self.config),
            "sums": asdict(self.sums),
            "window": asdict(self.window),
            "scaler": self.optimizer.scaling(),
        }
        if parent.is_dir():
            checkpoint.prune(parent, keep, coming=True)
        published = checkpoint.write(parent, self.sums.step, self.network, self.optimizer.adamw, state)
        self.reporter.checkpoint(self.sums.step, *published)
        taken = checkpoint.prune(parent, keep)
        if keep.budget_bytes is not None and taken > keep.budget_bytes:
            self.reporter.say(
                f"checkpoints take {taken:,} bytes, more than save_total_limit_bytes: none is left to drop"
            )
        self.reporter.phase("train")

    def _keep(self) -> checkpoint.Keep:
        resumed, best = self.config.resume_from_checkpoint, self.sums.best_step
        return checkpoint.Keep(
            newest=self.config.save_total_limit,
            budget_bytes=self.config.save_total_limit_bytes,
            best=None if best is None else self.directory / "checkpoints" / f"step-{best}",
            resumed=None if resumed is None else Path(resumed.dir),
            step=self.sums.step,
        )

    def _results(self) -> dict[str, Any]:
        texts = {"train_file": self.train_set.sequences}
        if self.eval_set is not None:
            texts["validation_file"] = self.eval_set.sequences
        return results.collect(
            self.config, self.device, self.sums, self.vocabulary, texts, steps_per_epoch=self.steps_per_epoch
        )


def _read(
    name: str, field: str, config: RunConfig, vocabulary: Vocabulary, directory: Path, reporter: Reporter
) -> Rows:
    cache = Path(config.cache_dir) if config.cache_dir else directory / "tokens"
    return sampler.arrange(
        dataset.read(Path(name), field, config, vocabulary, cache, reporter.say, reporter.work), config
    )


def _order(config: RunConfig) -> dict[str, Any]:
    """What decides, beside the text and the global batch, which rows and masks a step has."""
    return config.model_dump(mode="json", include={"seed", "group_by_length", "masking", "mlm_probability"})
