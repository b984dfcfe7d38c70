"""A tiny real corpus, tokenizer and model spec, and ranks as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from tokenizers import ByteLevelBPETokenizer

ROOT = Path(__file__).resolve().parents[2]
# Far more than anything takes: a busy machine is no failure.
LIMIT_S = 400
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "attention_window": 8,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
WITH_DROPOUT = SHAPE | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@dataclass(frozen=True)
class Inputs:
    train_file: Path
    validation_file: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """English of CPython's own help texts, a paragraph a line, and a byte-level BPE of it."""
    directory = tmp_path_factory.mktemp("inputs")
    lines = [" ".join(block.split()) for text in topics.values() for block in text.split("\n\n") if len(block) > 60]
    train, test = directory / "train_corpus.txt", directory / "test_corpus.txt"
    train.write_text("".join(f"{line}\n" for line in lines[:200]), encoding="utf-8")
    test.write_text("".join(f"{line}\n" for line in lines[200:215]), encoding="utf-8")
    tokenizer = directory / "lf_token"
    tokenizer.mkdir()
    bpe = ByteLevelBPETokenizer()
    bpe.train(str(train), vocab_size=400, special_tokens=SPECIAL_TOKENS, show_progress=False)
    bpe.save_model(str(tokenizer))
    return Inputs(train, test, tokenizer)


@pytest.fixture
def spec(inputs: Inputs) -> Callable[..., dict[str, Any]]:
    """A run config that trains for seconds, with overrides."""

    def make(**overrides: Any) -> dict[str, Any]:
        return {
            "from_scratch": SHAPE,
            "tokenizer_name": str(inputs.tokenizer),
            "train_file": str(inputs.train_file),
            "validation_file": str(inputs.validation_file),
            "max_seq_length": 32,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "cpu_threads": 1,
        } | overrides

    return make


class Ranks:
    """The rank processes of one run directory."""

    def __init__(self, directory: Path, config: dict[str, Any], world_size: int, *, start: bool = True) -> None:
        self.directory, self.config, self.world_size = directory, config, world_size
        directory.mkdir(parents=True, exist_ok=True)
        if world_size > 1:
            config = config | {"rendezvous": (directory / "rendezvous").as_uri()}
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self.processes = [self._start(rank, world_size) for rank in range(world_size)] if start else []

    def _start(self, rank: int, world_size: int) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "trainer", "--config", str(self.directory / "config.json")]
        with (self.directory / f"r{rank}.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> list[int]:
        return [process.wait(timeout=LIMIT_S) for process in self.processes]

    def succeed(self) -> "Ranks":
        assert self.wait() == [0] * len(self.processes), self.log()
        return self

    def until(self, condition: Callable[[], bool]) -> None:
        """Polls for a condition that the ranks bring about; fails if they end without."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, self.log()
            assert all(p.poll() is None for p in self.processes) or condition(), self.log()
            time.sleep(0.005)

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(number)

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self, rank: int = 0) -> str:
        return (self.directory / f"r{rank}.log").read_text(encoding="utf-8")

    def error(self, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.directory / f"r{rank}.error.json").read_text(encoding="utf-8"))

    def progress(self, rank: int = 0) -> dict[str, Any]:
        path = self.directory / f"r{rank}.progress"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return json.loads(text) if text else {"step": 0, "phase": "load"}

    def lines(self, kind: str) -> list[dict[str, Any]]:
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if line["kind"] == kind]

    def series(self, name: str) -> dict[int, float]:
        return {line["step"]: line["values"][name] for line in self.lines("metrics") if name in line["values"]}

    def results(self) -> dict[str, Any]:
        return json.loads((self.directory / "output" / "results.json").read_text(encoding="utf-8"))

    def weights(self) -> bytes:
        return (self.directory / "output" / "model.safetensors").read_bytes()

    def newest_checkpoint(self) -> dict[str, str]:
        line = self.lines("checkpoint")[-1]
        return {"dir": line["dir"], "manifest_sha256": line["manifest_sha256"]}


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts ranks in a directory of their own; whatever still runs at the end is killed."""
    started: list[Ranks] = []

    def start(name: str, config: dict[str, Any], world_size: int = 1) -> Ranks:
        started.append(Ranks(tmp_path / name, config, world_size))
        return started[-1]

    yield start
    for ranks in started:
        ranks.stop()


@pytest.fixture(scope="session")
def forked() -> Iterator[Callable[..., Ranks]]:
    """Runs prepared ranks to their end without a start of Python for each; see forked.py.

    `before`, "module:function", is called in each of them; `code` is how they should end.
    """
    command = [sys.executable, "-m", "tests.trainer.forked"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        orders, answers = process.stdin, process.stdout
        assert orders is not None
        assert answers is not None

        def run(ranks: Ranks, before: str | None = None, code: int = 0) -> Ranks:
            order = {"directory": str(ranks.directory), "world_size": ranks.world_size, "before": before}
            print(json.dumps(order), file=orders, flush=True)
            codes = json.loads(answers.readline())
            assert codes == [code] * ranks.world_size, "\n".join([str(codes), *map(ranks.log, range(len(codes)))])
            return ranks

        yield run
        orders.close()


@pytest.fixture
def train(forked: Callable[..., Ranks], tmp_path: Path) -> Callable[..., Ranks]:
    """`launch` for runs that nothing happens to: forked, and at their end when it answers. `code` is how they end."""

    def run(name: str, config: dict[str, Any], world_size: int = 1, *, code: int = 0) -> Ranks:
        return forked(Ranks(tmp_path / name, config, world_size, start=False), code=code)

    return run
