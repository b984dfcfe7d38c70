"""Owns a control plane to measure: `longyard up` in a directory of its own, from its start to the end of every process of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psutil

from benchmarks.control_plane.http_client import Connection, Json
from store.db import Database
from store.settings import Settings

START_S: Final = 60.0
STOP_S: Final = 90.0
PATIENCE_S: Final = 60.0
TRAINER: Final = "benchmarks.control_plane.noop_trainer"

T = TypeVar("T")


TOKENIZER: Final = '{"model": {"vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}}}'


@dataclass
class Rig:
    """A running plane. `process` is its `up`; `started_s` is what it took from there to the first 200."""

    settings: Settings
    inputs: Path
    process: subprocess.Popen[bytes]
    started_s: float = 0.0

    @property
    def url(self) -> str:
        return self.settings.url_file.read_text("utf-8").strip()

    @contextmanager
    def connection(self) -> Generator[Connection]:
        connection = Connection(self.url, self.settings.token_file.read_text("utf-8").strip())
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def database(self) -> Generator[Database]:
        """The plane's own, for what is written in bulk and for counting rows."""
        database = Database(self.settings.db_url, busy_timeout_s=30.0)
        try:
            yield database
        finally:
            database.dispose()

    def spec(self, program: str = "", *, num_devices: int = 1, **labels: str) -> Json:
        """A submission whose rank does `program`; see benchmarks/control_plane/noop_trainer.py."""
        file = self.inputs / (program.replace(" ", "-") or "trivial")
        if not file.exists():
            file.write_text(program or "some text to train on\n", "utf-8")
        train = {
            "train_file": str(file),
            "validation_file": str(file),
            "tokenizer_name": str(self.inputs / "tokenizer"),
        }
        return {"name": "bench", "preset": "demo", "num_devices": num_devices, "labels": labels, "train": train}

    def processes(self) -> list[psutil.Process]:
        """Everything alive that belongs to this plane, by whoever started it."""
        return [one for one in psutil.process_iter() if _is_of(one, self.settings.data_dir)]

    def parts(self) -> list[tuple[str, psutil.Process]]:
        """The plane's processes with their names: up, valkey-server, api, worker, ly-launcher, and ly-supervisor for each attempt."""
        up = psutil.Process(self.process.pid)
        below = [(name, one) for one in up.children(recursive=True) if (name := _name(one))]
        return [("up", up), *below]

    def part(self, name: str) -> psutil.Process:
        return next(one for known, one in self.parts() if known == name)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for left in self.processes():
            left.kill()
        until(lambda: not self.processes(), "every process of the plane is gone")


@contextmanager
def running(*, database_url: str = "", slots: int = 2) -> Generator[Rig]:
    """A plane that answers and whose host is online, for a `with` block. Nothing of it is left afterwards."""
    root = Path(tempfile.mkdtemp(prefix="longyard-bench-"))
    try:
        rig = _start(root, database_url, slots)
        try:
            _await_host(rig)
            yield rig
        finally:
            rig.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def until(condition: Callable[[], T], what: str, *, within_s: float = PATIENCE_S, every_s: float = 0.01) -> T:
    """Wait until the condition answers something true, and answer that. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(every_s)
    return answer


def is_gone(pid: int) -> bool:
    """A zombie whose parent has not looked yet counts as gone."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def cpu_s(rig: Rig, *names: str) -> float:
    """CPU seconds of these parts so far, of the children that they have collected too; of all parts where none is named.

    Where other work shares the machine, this tells what wall time does not.
    """
    times = [one.cpu_times() for name, one in rig.parts() if not names or name in names]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def pss_mib(pid: int) -> float:
    """A process's share of memory: what it shares with others is divided among them."""
    return memory_mib(pid, "Pss")


def memory_mib(pid: int, name: str) -> float:
    """One row of the kernel's summary of a process's memory."""
    for row in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if row.startswith(f"{name}:"):
            return int(row.split()[1]) / 1024
    raise ValueError(f"no {name} of process {pid}")


def _start(root: Path, database_url: str, slots: int) -> Rig:
    inputs = root / "inputs"
    (inputs / "tokenizer").mkdir(parents=True)
    (inputs / "tokenizer" / "tokenizer.json").write_text(TOKENIZER, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    environment |= {
        "LONGYARD_DATA_DIR": str(root / "data"),
        "LONGYARD_PORT": "0",
        "LONGYARD_DEVICES": f"cpu:{slots}",
        "LONGYARD_HOST_NAME": "bench",
        "LONGYARD_DATA_ROOTS": str(inputs),
        "LONGYARD_TRAINER_MODULE": TRAINER,
        **({"LONGYARD_DATABASE_URL": database_url} if database_url else {}),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli", "up"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    rig = Rig(Settings(data_dir=root / "data", database_url=database_url, host_name="bench"), inputs, process)
    try:
        until(lambda: _answers(rig), "the plane answers", within_s=START_S, every_s=0.005)
    except BaseException:
        rig.stop()
        raise
    rig.started_s = time.monotonic() - began
    return rig


def _answers(rig: Rig) -> bool:
    """A 200 to an authenticated read of the database, not only an open port."""
    if rig.process.poll() is not None:
        raise RuntimeError(f"`longyard up` ended with exit code {rig.process.returncode}")
    try:
        with rig.connection() as http:
            return http.get("/jobs").status == 200
    except OSError:
        return False


def _await_host(rig: Rig) -> None:
    with rig.connection() as http:
        until(lambda: any(host["status"] == "online" for host in http.get("/hosts").json()["data"]), "a host is online")


def _name(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    try:
        words, name = process.cmdline(), process.name()
    except psutil.Error:
        return ""
    if name.startswith("ly-") or "-m" not in words:
        return name
    return words[words.index("-m") + 1]


def _is_of(process: psutil.Process, data_dir: Path) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        ours = process.environ().get("LONGYARD_DATA_DIR") == str(data_dir)
        return ours or any(str(data_dir) in word for word in process.cmdline())
    except psutil.Error:
        return False
