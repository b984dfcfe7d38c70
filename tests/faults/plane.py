"""Owns a whole plane whose every part can be killed: API, broker and workers as processes of their own, and the end of all of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis

from cli.console import die_with_parent
from migrations.upgrade import upgrade
from store.db import Database
from store.settings import Settings
from tests.faults import witness
from tests.faults.client import Client
from tests.faults.proxy import Proxy
from tests.faults.timings import Timings, until
from tests.worker.processes import is_running

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
DEVICE_TYPE = "cpu"
T = TypeVar("T")
Operation = dict[str, Any]


TOKENIZER = '{"model": {"vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}}}'


@dataclass
class Part:
    """One process of the plane."""

    name: str
    module: str
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module],
                env=self.environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGKILL),
            )

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send it, and see the process gone."""
        if self.process is not None:
            self.process.send_signal(signum)
            # A process that was frozen hears nothing but SIGKILL.
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(timeout=90)


@dataclass
class Plane:
    """One data directory, and every process that works on it. `devices` is how many each host has; `part_variables` are one part's own.

    `ways` are the proxies between parts and servers, by part, the broker's by `broker`."""

    root: Path
    timings: Timings
    devices: dict[str, int]
    database_url: str = ""
    redis_url: str = ""
    variables: dict[str, str] = field(default_factory=dict[str, str])
    part_variables: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    switches: tuple[str, ...] = ()
    ways: dict[str, Proxy] = field(default_factory=dict[str, Proxy])
    parts: dict[str, Part] = field(default_factory=dict[str, Part])

    def __post_init__(self) -> None:
        self.inputs = self.root / "inputs"
        (self.inputs / "tokenizer").mkdir(parents=True, exist_ok=True)
        (self.inputs / "tokenizer" / "tokenizer.json").write_text(TOKENIZER)
        self.settings = Settings(
            data_dir=self.root / "data",
            database_url=self.database_url,
            redis_url=self.redis_url,
            data_roots=(self.inputs,),
            **{**self.timings.settings, **{_field(name): value for name, value in self.variables.items()}},
        )
        (self.settings.data_dir / witness.DIRECTORY).mkdir(parents=True)
        shutil.copytree(INJECT, self.root / "inject")
        for name in self.switches:
            self.switch(name, "")
        self.database = Database(self.settings.db_url, busy_timeout_s=30.0)
        self.client = Client(self.settings)
        self._add("broker", "store.embedded_valkey")
        self._add("api", "api")
        for host in self.devices:
            self._add(f"worker {host}", "worker", **self._host_variables(host))

    @property
    def broker(self) -> Part:
        return self.parts["broker"]

    @property
    def api(self) -> Part:
        return self.parts["api"]

    def worker(self, host: str = "a") -> Part:
        return self.parts[f"worker {host}"]

    def start(self) -> None:
        """Every part that is not up, in the order that `longyard up` has; returns when the plane answers and its hosts are online."""
        for part in self.parts.values():
            if not part.is_up:
                if part is self.api:
                    self.settings.url_file.unlink(missing_ok=True)
                part.start()
        self.await_ready()

    def await_ready(self) -> None:
        self.await_broker()
        self.until(self.client.is_answered, "the API answers", stated_s=30)
        for host in self.devices:
            self.until(partial(self._is_online, host), f"host {host} is online", stated_s=30)

    def await_broker(self) -> None:
        self.until(self._broker_answers, "the broker answers", stated_s=30)

    def submit(self, program: list[Operation], *, num_devices: int = 1, **spec: Any) -> str:
        """A job by HTTP whose ranks do what the program says. Answers its id."""
        return self.client.submit(self.spec(program, num_devices=num_devices, **spec))

    def spec(self, program: list[Operation], *, num_devices: int = 1, **more: Any) -> dict[str, Any]:
        text = "\n".join(json.dumps(operation) for operation in program)
        path = self.inputs / f"{len(list(self.inputs.iterdir()))}.txt"
        path.write_text(text)
        train = {
            "from_scratch": {},
            "tokenizer_name": str(self.inputs / "tokenizer"),
            "train_file": str(path),
            "do_eval": False,
        }
        return {"preset": "demo", "num_devices": num_devices, "device_type": DEVICE_TYPE, "train": train} | more

    def until(self, condition: Callable[[], T | None], what: str, *, stated_s: float) -> T:
        """`stated_s` is what the default timings promise."""
        return until(condition, what, within_s=self.timings.within(stated_s))

    def run_dir(self, job_id: str, number: int = 1) -> Path:
        return self.settings.run_dir(job_id, number)

    def switch(self, name: str, value: str | None) -> None:
        """What `inject/sitecustomize.py` does in the plane's processes; None turns it off."""
        path = self.root / "inject" / name
        if value is None:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_suffix(".new")
        fresh.write_text(value)
        fresh.rename(path)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started for this plane, whoever started it."""
        return [one for one in psutil.process_iter() if one.pid != os.getpid() and _is_of(one, str(self.root))]

    def stop(self) -> None:
        """Nothing of the plane is left afterwards."""
        self.client.close()
        self.database.dispose()
        for way in self.ways.values():
            way.close()
        for part in self.parts.values():
            if part.is_up:
                part.kill()
        deadline = time.monotonic() + 60
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there: {left}"
            for process in left:
                if is_running(process.pid):
                    process.kill()
            time.sleep(0.01)

    def _add(self, name: str, module: str, **variables: str) -> None:
        environment = self._environment(variables) | self.part_variables.get(name, {})
        self.parts[name] = Part(name, module, environment, self.root / f"{name.replace(' ', '-')}.log")

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
        timings = {f"LONGYARD_{name.upper()}": str(value) for name, value in self.timings.settings.items()}
        search = [str(self.root / "inject"), str(ROOT), *filter(None, [plain.get("PYTHONPATH")])]
        return {
            **plain,
            **timings,
            "PYTHONPATH": os.pathsep.join(search),
            "LONGYARD_DATA_DIR": str(self.settings.data_dir),
            "LONGYARD_DATABASE_URL": self.database_url,
            "LONGYARD_REDIS_URL": self.redis_url,
            "LONGYARD_DATA_ROOTS": str(self.inputs),
            "LONGYARD_PORT": "0",
            "LONGYARD_TRAINER_MODULE": "tests.fake_trainer",
            "LONGYARD_SHUTDOWN_GRACE_S": "1",
            **self.variables,
            **variables,
        }

    def _host_variables(self, host: str) -> dict[str, str]:
        return {
            "LONGYARD_HOST_NAME": host,
            "LONGYARD_DEVICES": f"{DEVICE_TYPE}:{self.devices[host]}",
            witness.HOST_VARIABLE: str(self.root / "hosts" / host),
        }

    def _is_online(self, host: str) -> bool:
        return any(one["name"] == host and one["status"] == "online" for one in self.client.hosts())

    def _broker_answers(self) -> bool:
        try:
            with redis.Redis.from_url(f"unix://{self.settings.broker_socket}", driver_info=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def running(
    root: Path, timings: Timings, *, devices: dict[str, int], template: Path | None = None, **more: Any
) -> Generator[Plane]:
    """A plane that is ready, for a `with` block. `template` is an SQLite database at the newest schema, to save its making."""
    plane = Plane(root, timings, devices, **more)
    try:
        if template is not None and not plane.database_url:
            shutil.copyfile(template, plane.settings.data_dir / "longyard.db")
        else:
            upgrade(plane.settings.db_url)
        plane.start()
        yield plane
    finally:
        plane.stop()


def _field(name: str) -> str:
    return name.removeprefix("LONGYARD_").lower()


def _is_of(process: psutil.Process, root: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get("LONGYARD_DATA_DIR", "").startswith(root) or any(
            root in word for word in process.cmdline()
        )
    except psutil.Error:
        return False
