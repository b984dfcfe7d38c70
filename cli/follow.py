"""Owns following one job in a terminal: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from cli import client
from cli.client import Json, printable
from cli.output import number

TERMINAL = ("succeeded", "failed", "cancelled")
LINE_EVERY_S = 10.0


@dataclass
class Seen:
    """What is known of the job by now. `loss` and `speed` are the newest reports; speed is samples a second."""

    job: Json
    loss: float | None = None
    speed: float | None = None

    def take(self, message: client.Message) -> None:
        if message.event == "job":
            self.job = message.data
        elif message.event == "metrics":
            series = message.data["series"]
            self.loss = _last(series.get("loss"), self.loss)
            self.speed = _last(series.get("samples_per_second"), self.speed)

    @property
    def step(self) -> int:
        return int((self.job["progress"] or {}).get("step") or 0)

    @property
    def total(self) -> int | None:
        return (self.job["progress"] or {}).get("total_steps")

    @property
    def phase(self) -> str:
        """Where the job stands in one word: the trainer's phase while it runs, else its status."""
        phase = (self.job["progress"] or {}).get("phase")
        return str(phase) if self.job["status"] == "running" and phase else str(self.job["status"])

    @property
    def figures(self) -> str:
        eta_s = (self.job["progress"] or {}).get("eta_s")
        parts = [f"loss {number(self.loss)}", f"{number(self.speed)} samples/s"]
        return "   ".join([*parts, f"{_duration(eta_s)} left"] if eta_s is not None else parts)


def follow(http: httpx.Client, job: Json) -> Json:
    """Show a job's progress on stderr until it has ended. Returns the job as it ended. Raises client.Unreachable."""
    seen = Seen(job)
    console = Console(stderr=True)
    if job["status"] not in TERMINAL:
        if console.is_terminal:
            _follow_bar(http, seen, console)
        else:
            _follow_lines(http, seen)
    return client.request(http, "GET", f"/jobs/{job['id']}")


def _follow_bar(http: httpx.Client, seen: Seen, console: Console) -> None:
    columns = (
        TextColumn("{task.description:<9}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(printable(seen.phase), total=None, figures="")
        reason = None
        for message in client.follow(http, seen.job["id"], seen.job["cursor"]):
            seen.take(message)
            if seen.job["status_reason"] != reason:
                reason = seen.job["status_reason"]
                console.print(Text(printable(str(reason or seen.job["status"]))))
            _draw(bar, task, seen)


def _draw(bar: Progress, task: TaskID, seen: Seen) -> None:
    steps = f"{seen.step}/{seen.total}   {seen.figures}" if seen.total else ""
    bar.update(task, description=printable(seen.phase), completed=seen.step, total=seen.total, figures=steps)


def _follow_lines(http: httpx.Client, seen: Seen) -> None:
    told_at, told_step, told_phase = 0.0, -1, ""
    for message in client.follow(http, seen.job["id"], seen.job["cursor"]):
        seen.take(message)
        now = time.monotonic()
        moved = seen.step != told_step and now - told_at >= LINE_EVERY_S
        if seen.phase == told_phase and not moved:
            continue
        told_at, told_step, told_phase = now, seen.step, seen.phase
        reason = "" if seen.job["status_reason"] == seen.phase else seen.job["status_reason"] or ""
        what = f"step {seen.step}/{seen.total}   {seen.figures}" if seen.total else reason
        print(f"{printable(seen.phase):<9}  {printable(what)}".rstrip(), file=sys.stderr, flush=True)


def _last(points: Any, known: float | None) -> float | None:
    return points[-1][1] if points else known


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
