"""Owns what a run adds up over its steps. Kept in checkpoints, so that a resumed run reports the same numbers."""

import math
from dataclasses import dataclass
from typing import Any

# The recipe leaves the first ten steps out of its mean throughput.
WARM_STEPS = 10


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted over all ranks; padding is not counted.

    `samples` are sequences, of which a packed row holds several; `specials` those of the tokens that are never masked.
    """

    loss: float
    grad_norm: float
    labels: int
    tokens: int
    samples: int
    specials: int = 0


@dataclass
class Sums:
    """The whole run, over all its attempts."""

    step: int = 0
    evaluated_step: int = -1
    initial_eval_loss: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    best_step: int | None = None
    loss_sum: float = 0.0
    num_samples: int = 0
    train_s: float = 0.0
    fps_sum: float = 0.0
    fps_steps: int = 0

    def add(self, step: Step, step_s: float, *, is_warm: bool) -> None:
        """Counts a step; `is_warm` once its process has taken WARM_STEPS."""
        self.step += 1
        self.loss_sum += step.loss
        self.num_samples += step.samples
        self.train_s += step_s
        if is_warm:
            self.fps_sum += step.samples / step_s
            self.fps_steps += 1

    def evaluated(self, loss: float, *, is_saved: bool) -> None:
        """Counts an evaluation at this step; only a step that has a checkpoint can be the best."""
        self.evaluated_step, self.eval_loss = self.step, loss
        if self.step == 0:
            self.initial_eval_loss = loss
        if is_saved and (self.best_eval_loss is None or loss < self.best_eval_loss):
            self.best_eval_loss, self.best_step = loss, self.step

    def results(self) -> dict[str, Any]:
        """`fps` as the recipe defines it: the mean of samples per second over the warm steps. `fps_wall`: all in all.

        A sample is a sequence of the text in both, however many of them a row holds; what fills up a short step is none.
        """
        return {
            "perplexity": None if self.eval_loss is None else perplexity(self.eval_loss),
            "eval_loss": self.eval_loss,
            "initial_perplexity": None if self.initial_eval_loss is None else perplexity(self.initial_eval_loss),
            "train_loss": self.loss_sum / self.step if self.step else None,
            "fps": self.fps_sum / self.fps_steps if self.fps_steps else None,
            "fps_wall": self.num_samples / self.train_s if self.train_s else None,
            "steps": self.step,
            "num_samples": self.num_samples,
        }


@dataclass
class Window:
    """The steps since the last report."""

    steps: int = 0
    loss_sum: float = 0.0
    labels: int = 0
    tokens: int = 0
    samples: int = 0
    specials: int = 0
    step_s: float = 0.0
    data_s: float = 0.0

    def add(self, step: Step, step_s: float, data_s: float) -> None:
        self.steps += 1
        self.loss_sum += step.loss
        self.labels += step.labels
        self.tokens += step.tokens
        self.samples += step.samples
        self.specials += step.specials
        self.step_s += step_s
        self.data_s += data_s

    def values(self) -> dict[str, float]:
        """Means over the window, by the names they are reported under. The masked rate is of the tokens that can be masked."""
        return {
            "loss": self.loss_sum / self.steps,
            "step_time": self.step_s / self.steps,
            "data_time": self.data_s / self.steps,
            "samples_per_second": self.samples / self.step_s,
            "tokens_per_second": self.tokens / self.step_s,
            "masked_rate": self.labels / max(1, self.tokens - self.specials),
        }


def perplexity(loss: float) -> float:
    """e to the mean cross entropy; infinity where that is too large a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
