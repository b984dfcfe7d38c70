"""A trainer without torch: `python -m tests.fake_trainer --config F` does what the JSON lines of its train_file say.

Each line is {"do": …, "rank": n or absent for all}; a train_file that is no such program makes a short, successful run. It writes the
same files as the real trainer and leaves with the same exit codes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults import witness

RANK = int(os.environ.get("RANK", "0"))


class Stopped(Exception):
    pass


class Run:
    """One rank. Every method named like an operation does it."""

    def __init__(self, config_path: Path) -> None:
        self.dir = config_path.parent
        self.config: dict[str, Any] = json.loads(config_path.read_text())
        self.step = 0
        self.total_steps: int | None = None
        self.in_phase = "train"
        self.num_meetings = 0
        self.stop_asked = False
        self.stack = open(self.dir / f"r{RANK}.stack", "w")  # noqa: SIM115  # faulthandler keeps its descriptor
        faulthandler.register(signal.SIGUSR1, file=self.stack, all_threads=True)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, _number: int, _frame: object) -> None:
        self.stop_asked = True

    def program(self) -> list[dict[str, Any]]:
        text = Path(self.config["train_file"]).read_text(errors="replace")
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            return [
                {"do": "say", "text": "trivial"},
                {"do": "metrics", "step": 1, "values": {"loss": 1.0}},
                {"do": "succeed"},
            ]

    def do(self, operation: dict[str, Any]) -> None:
        wanted = operation.get("rank")
        if wanted is None or wanted == RANK:
            arguments = {name: value for name, value in operation.items() if name not in ("do", "rank")}
            getattr(self, operation["do"])(**arguments)

    def say(self, text: str, times: int = 1) -> None:
        for number in range(times):
            print(text.replace("#", str(number)), flush=True)

    def write(self, hex: str, times: int = 1) -> None:
        """Raw bytes into the log."""
        sys.stdout.buffer.write(bytes.fromhex(hex) * times)
        sys.stdout.flush()

    def pour(self, pattern: str, num_bytes: int) -> None:
        """So many bytes into the log: `pattern` in hex again and again, or random ones where it is empty; then a last line."""
        repeated = bytes.fromhex(pattern)
        piece = repeated * ((1 << 20) // len(repeated)) if repeated else b""
        while num_bytes > 0:
            piece = piece if repeated else os.urandom(1 << 20)
            num_bytes -= os.write(1, piece[:num_bytes])
        self.say("\npoured")

    def grind(self, steps: int, bytes_a_step: int) -> None:
        """Steps of work for the processor, each with so much to say; then how long they took."""
        import hashlib

        said, material = b"x" * (bytes_a_step - 1) + b"\n", bytes(1 << 22)
        began = time.perf_counter()
        for _ in range(steps):
            hashlib.sha256(material).digest()
            os.write(1, said)
        self.say(f"ground for {time.perf_counter() - began} s")

    def flood(self, first: int, last: int, num_names: int, names_a_line: int = 100) -> None:
        """Every name's value at every step, as fast as they can be written."""
        for step in range(first, last + 1):
            for start in range(0, num_names, names_a_line):
                names = range(start, min(num_names, start + names_a_line))
                self._tell(kind="metrics", step=step, values={f"name-{number}": step + number for number in names})

    def report(self, line: str) -> None:
        """A raw piece of metrics.jsonl."""
        if RANK == 0:
            with open(self.dir / "metrics.jsonl", "ab") as file:
                file.write(line.encode())

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        self.step = step
        self._tell(kind="metrics", step=step, values=values)
        self._progress()

    def count(self, first: int, last: int, name: str = "loss") -> None:
        for step in range(first, last + 1):
            self.metrics(step, {name: float(step)})
            print(f"step {step}", flush=True)

    def train(
        self,
        steps: int,
        step_s: float = 0.01,
        save_every: int = 10,
        hold_at: int = -1,
        gate: str = "",
        die_after: int = 0,
    ) -> None:
        """Steps like a real run's, from the checkpoint in the config on: see tests/faults/witness.py.

        Waits at step `hold_at` for the file `gate`; dies by SIGKILL after `die_after` steps of this process.
        """
        lesson = witness.resume(self.config)
        self.step, saved = lesson.step, lesson.step
        self.phase("train", total_steps=steps)
        while lesson.step < steps and not self.stop_asked:
            if lesson.step == hold_at and not Path(gate).exists():
                time.sleep(0.005)
                continue
            time.sleep(step_s)
            values = lesson.learn()
            self.metrics(lesson.step, values)
            print(f"step {lesson.step} loss {values['loss']!r}", flush=True)
            if lesson.step % save_every == 0:
                saved = self._save(lesson)
            die_after -= 1
            if die_after == 0:
                self.die(signal.SIGKILL)
        if self.stop_asked:
            if saved < lesson.step:
                self._save(lesson)
            raise Stopped

    def _save(self, lesson: witness.Lesson) -> int:
        if RANK == 0:
            self.checkpoint(lesson.step, state=witness.state_of(lesson))
        return lesson.step

    def phase(self, name: str, total_steps: int | None = None) -> None:
        self.in_phase, self.total_steps = name, total_steps or self.total_steps
        self._tell(
            kind="phase", phase=name, step=self.step, **({} if total_steps is None else {"total_steps": total_steps})
        )
        self._progress()

    def startup(self, **parts: float) -> None:
        self._tell(kind="startup", parts=parts)

    def work(self, first: int, last: int, step_s: float) -> None:
        """Steps that take their time."""
        for step in range(first, last + 1):
            time.sleep(step_s)
            self.metrics(step, {"loss": float(step)})

    def all_reduce(self) -> None:
        """Wait until every rank has come here as often."""
        self.num_meetings += 1
        (self.dir / f"r{RANK}.met.tmp").write_text(str(self.num_meetings))
        (self.dir / f"r{RANK}.met.tmp").rename(self.dir / f"r{RANK}.met")
        peers = [self.dir / f"r{rank}.met" for rank in range(int(os.environ.get("WORLD_SIZE", "1")))]
        while not all(peer.exists() and int(peer.read_text()) >= self.num_meetings for peer in peers):
            time.sleep(0.005)

    def checkpoint(self, step: int, broken: bool = False, state: dict[str, Any] | None = None) -> None:
        import hashlib

        directory = self.dir / "checkpoints" / f"step-{step}"
        directory.mkdir(parents=True, exist_ok=True)
        written = json.dumps(state or {"step": step}).encode()
        (directory / "state.json").write_bytes(written)
        described = {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
        manifest = json.dumps({"format": 1, "step": step, "files": {"state.json": described}}).encode()
        (directory / "manifest.json").write_bytes(manifest)
        if broken:
            (directory / "state.json").write_bytes(written[:-1] + b"?")
        self._tell(
            kind="checkpoint", step=step, dir=str(directory), manifest_sha256=hashlib.sha256(manifest).hexdigest()
        )

    def tell_config(self) -> None:
        print(json.dumps(self.config), flush=True)

    def tell_environment(self) -> None:
        print(json.dumps(dict(os.environ)), flush=True)

    def plog(self, text: str) -> None:
        """A line as an Ascend card's runtime logs it."""
        directory = Path(os.environ["ASCEND_PROCESS_LOG_PATH"]) / "debug" / "plog"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"plog-{os.getpid()}_20260101000000.log").write_text(f"{text}\n")

    def fail(self, type: str, message: str, kind: str = "exception", code: int = 1) -> None:
        """An error file as the real trainer writes it, a traceback in the log, an exit code."""
        import traceback

        error = RuntimeError(message)
        body = {
            "kind": kind,
            "type": type,
            "message": message,
            "traceback": "",
            "step": self.step,
            "monotonic": time.monotonic(),
        }
        (self.dir / f"r{RANK}.error.json").write_text(json.dumps(body))
        traceback.print_exception(error)
        self.leave(code)

    def leave(self, code: int) -> None:
        sys.stdout.flush()
        os._exit(code)

    def die(self, signal_number: int) -> None:
        sys.stdout.flush()
        os.kill(os.getpid(), signal_number)

    def kill_supervisor(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)

    def ignore_stop(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ignoring SIGTERM", flush=True)

    def close_ears(self) -> None:
        """Answer SIGUSR1 no more."""
        faulthandler.unregister(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def fork_loader(self) -> None:
        """A child that sleeps for ever, as a loader worker does whose rank is gone; it writes its pid into the log."""
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            while True:
                signal.pause()
        print(f"loader {pid}", flush=True)

    def hide(self) -> None:
        """A program with an empty environment in a session of its own; its pid goes into the log."""
        import subprocess

        code = "import os, time; os.setsid(); time.sleep(600)"
        hidden = subprocess.Popen([sys.executable, "-c", code], env={})
        print(f"hidden {hidden.pid}", flush=True)

    def wait_for(self, path: str) -> None:
        """Until the test makes the file, or a stop is asked for."""
        while not Path(path).exists():
            if self.stop_asked:
                raise Stopped
            time.sleep(0.002)

    def wait_for_stop(self, save: int | None = None) -> None:
        """For ever. A stop that is asked for ends it as it ends the real trainer, `save` being the step of its checkpoint."""
        while not self.stop_asked:
            time.sleep(0.002)
        if save is not None:
            self.checkpoint(save)
        raise Stopped

    def hang(self) -> None:
        while True:
            signal.pause()

    def succeed(self, **results: Any) -> None:
        if RANK == 0:
            temporary = self.dir / "output.tmp"
            temporary.mkdir(exist_ok=True)
            (temporary / "results.json").write_text(
                json.dumps({"perplexity": 2.5, "fps": 100.0, "epochs": 1.0} | results)
            )
            temporary.rename(self.dir / "output")
        raise SystemExit(0)

    def _tell(self, **line: Any) -> None:
        if RANK == 0:
            with open(self.dir / "metrics.jsonl", "ab") as file:
                file.write(json.dumps(line | {"at": time.time()}).encode() + b"\n")

    def _progress(self) -> None:
        progress = {
            "step": self.step,
            "total_steps": self.total_steps,
            "phase": self.in_phase,
            "monotonic": time.monotonic(),
        }
        (self.dir / f"r{RANK}.progress").write_bytes(json.dumps(progress).encode().ljust(255) + b"\n")


def main() -> int:
    run = Run(Path(sys.argv[sys.argv.index("--config") + 1]))
    witness.take(run.dir, RANK)
    try:
        for operation in run.program():
            run.do(operation)
    except Stopped:
        print("stopped", flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
