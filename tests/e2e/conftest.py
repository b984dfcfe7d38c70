"""A whole plane on one machine, as `longyard up` starts it, with the real trainer and real text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
START_S = 60.0
PATIENCE_S = 120.0

Json = dict[str, Any]

SMALL: Json = {
    "from_scratch": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "attention_window": 16,
        "max_position_embeddings": 66,
    },
    "max_seq_length": 64,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 64,
    "logging_steps": 1,
    "do_eval": False,
}
"""A Longformer that makes many steps a second."""


@dataclass
class Plane:
    """One `longyard up` on a data directory of its own."""

    data_dir: Path
    inputs: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        (self.data_dir / "url").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            assert self.process.poll() is None, f"up ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "the plane did not come up"
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return (self.data_dir / "url").read_text().strip()

    @property
    def token(self) -> str:
        return (self.data_dir / "token").read_text().strip()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=30.0)

    def post(self, path: str, body: Json | None = None) -> Json:
        with self.client() as http:
            response = http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def get(self, path: str) -> Json:
        with self.client() as http:
            response = http.get(path)
        assert response.is_success, response.text
        return response.json()

    def submit(self, name: str, *, num_devices: int = 1, **train: Any) -> str:
        """A small job on the demo's text, by HTTP. Returns its id."""
        return self.post("/jobs", self.spec(name, num_devices=num_devices, **train))["id"]

    def spec(self, name: str, *, num_devices: int = 1, **train: Any) -> Json:
        files = {**self._files(), **SMALL, **train}
        return {"name": name, "preset": "demo", "num_devices": num_devices, "train": files}

    def job(self, job_id: str) -> Json:
        return self.get(f"/jobs/{job_id}")

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started for this data directory, whoever started it."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _is_of(process, str(self.data_dir))
        ]

    def _files(self) -> dict[str, str]:
        """A little of the demo's text, so that a rank is at its first step soon; its whole tokenizer."""
        for name, num_bytes in (("train_corpus.txt", 100_000), ("test_corpus.txt", 10_000)):
            text = (EXAMPLES / "corpus" / name).read_bytes()[:num_bytes].rpartition(b"\n")[0]
            (self.inputs / name).write_bytes(text)
        return {
            "train_file": str(self.inputs / "train_corpus.txt"),
            "validation_file": str(self.inputs / "test_corpus.txt"),
            "tokenizer_name": str(EXAMPLES / "lf_token"),
        }

    def _is_ready(self) -> bool:
        try:
            self.get("/readyz")
            return any(host["status"] == "online" for host in self.get("/hosts")["data"])
        except (OSError, httpx.HTTPError, AssertionError):
            return False


@pytest.fixture(scope="session")
def text() -> None:
    """The demo's corpus and tokenizer, made where they are missing."""
    subprocess.run([sys.executable, "-m", "examples.build"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def eventually(eventually: Callable[..., object]) -> Callable[..., object]:
    """More patient than elsewhere: a rank imports torch first, and the machine may be busy with other tests."""
    return partial(eventually, within_s=PATIENCE_S)


@pytest.fixture
def plane(tmp_path: Path, text: None, eventually: Callable[..., object]) -> Iterator[Plane]:
    """A running plane with four CPU slots. Whatever a test leaves running is ended, and seen gone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    environment |= {
        "LONGYARD_DATA_DIR": str(tmp_path / "data"),
        "LONGYARD_PORT": "0",
        "LONGYARD_DEVICES": "cpu:4",
        "LONGYARD_HOST_NAME": "e2e",
        "LONGYARD_DATA_ROOTS": f"{EXAMPLES}:{tmp_path / 'inputs'}",
    }
    (tmp_path / "inputs").mkdir()
    plane = Plane(tmp_path / "data", tmp_path / "inputs", environment)
    plane.start()
    try:
        yield plane
    finally:
        if plane.process.poll() is None:
            plane.process.send_signal(signal.SIGTERM)
            plane.process.wait(timeout=90)
        for process in plane.processes():
            process.kill()
        eventually(lambda: not plane.processes())


def _is_of(process: psutil.Process, data_dir: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get("LONGYARD_DATA_DIR") == data_dir or any(
            data_dir in word for word in process.cmdline()
        )
    except psutil.Error:
        return False
