"""Owns the files a rank writes for whoever watches it: metrics.jsonl, r<rank>.progress, r<rank>.error.json.

Only appends or overwrites files; knows no server.
"""

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from trainer.dist_env import Place
from trainer.errors import classify
from trainer.startup_timer import StartUp

# A write of one constant size is never seen half done by a reader on the same host.
_PROGRESS_BYTES = 256
_WORK_SIGN_S, _WORK_LINE_S = 1.0, 10.0


class Reporter:
    """One rank's open report files. Only rank 0 writes metrics.jsonl and prints progress."""

    def __init__(self, directory: Path, place: Place, startup: StartUp | None = None) -> None:
        self._place = place
        self._startup = startup
        self._phase = "load"
        self._step = 0
        self._total_steps: int | None = None
        self._bar: tqdm[Any] | None = None
        self._work_bar: tqdm[Any] | None = None
        self._worked_at = self._work_told_at = time.monotonic()
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._progress = os.open(directory / f"r{place.rank}.progress", flags, 0o644)
        self._metrics = os.open(directory / "metrics.jsonl", flags | os.O_APPEND, 0o644) if place.is_first else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in (self._bar, self._work_bar):
            if bar is not None:
                bar.close()
        os.close(self._progress)
        if self._metrics is not None:
            os.close(self._metrics)

    @property
    def step(self) -> int:
        return self._step

    def phase(self, name: str) -> None:
        """Enters load, train, evaluate, save or end; `train` tells how many steps there are."""
        self._phase = name
        line: dict[str, Any] = {"kind": "phase", "phase": name, "step": self._step}
        if self._total_steps is not None:
            line["total_steps"] = self._total_steps
        self._append(line)
        self._write_progress()

    def plan(self, total_steps: int, *, step: int) -> None:
        """Says how far the training goes and where it stands, before its first step."""
        self._total_steps = total_steps
        self._step = step
        if self._work_bar is not None:
            self._work_bar.close()
        if self._place.is_first and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True)

    def stepped(self, step: int) -> None:
        """Marks a step as done. Called by every rank after every step."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step
        self._write_progress()
        if self._startup is not None:
            self._tell_startup(self._startup)
            self._startup = None

    def passed(self, part: str) -> None:
        """Counts what has been done since the last call as that part of the way to the first step."""
        if self._startup is not None:
            self._startup.passed(part)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Appends one report. NaN and infinities are written as "nan", "inf" and "-inf": JSON has none."""
        self._append({"kind": "metrics", "step": step, "values": {name: _finite(v) for name, v in values.items()}})
        words = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None and "loss" in values:
            self._bar.set_postfix(loss=f"{values['loss']:.3f}")
        else:
            total = "" if self._total_steps is None else f"/{self._total_steps}"
            self.say(f"step {step}{total} {words}")

    def checkpoint(self, step: int, directory: Path, manifest_sha256: str) -> None:
        """Tells of a checkpoint that has been published."""
        self._append({"kind": "checkpoint", "step": step, "dir": str(directory), "manifest_sha256": manifest_sha256})
        self.say(f"checkpoint at step {step}: {directory}")

    def work(self, what: str, done: int, total: int) -> None:
        """Shows how far a long piece of work before the training has come, in bytes; 0 of 0 while it is waited for."""
        now = time.monotonic()
        if now - self._worked_at >= _WORK_SIGN_S:
            # Whoever watches sees that this rank is alive.
            self._worked_at = now
            self._write_progress()
        if sys.stderr.isatty():
            self._show_work(what, done, total)
        elif now - self._work_told_at >= _WORK_LINE_S:
            self._work_told_at = now
            share = f": {done / total:.0%} of {total / 1e6:,.0f} MB" if total else ""
            tqdm.write(f"{what}{share}", file=sys.stdout)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """Prints one line to the log, from rank 0 only."""
        if self._place.is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _tell_startup(self, startup: StartUp) -> None:
        startup.passed("first_step")
        parts = startup.parts()
        self._append({"kind": "startup", "step": self._step, "parts": parts})
        words = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        self.say(f"first step after {sum(parts.values()):.2f} s: {words}")

    def _show_work(self, what: str, done: int, total: int) -> None:
        bar = self._work_bar
        if bar is None or bar.desc != what:
            if bar is not None:
                bar.close()
            bar = self._work_bar = tqdm(total=total or None, desc=what, unit="B", unit_scale=True, dynamic_ncols=True)
        bar.update(done - bar.n)

    def _append(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            line["at"] = round(time.time(), 6)
            os.write(self._metrics, json.dumps(line, allow_nan=False).encode() + b"\n")

    def _write_progress(self) -> None:
        progress = {
            "step": self._step,
            "total_steps": self._total_steps,
            "phase": self._phase,
            "monotonic": time.monotonic(),
        }
        os.pwrite(self._progress, json.dumps(progress).encode().ljust(_PROGRESS_BYTES - 1) + b"\n", 0)


def write_error(directory: Path, rank: int, error: BaseException, *, step: int | None) -> None:
    """Writes r<rank>.error.json, whole or not at all."""
    kind, _ = classify(error)
    body = {
        "kind": kind,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "step": step,
        "monotonic": time.monotonic(),
    }
    path = directory / f"r{rank}.error.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body), encoding="utf-8")
    temporary.rename(path)


def _finite(value: float) -> float | str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value
