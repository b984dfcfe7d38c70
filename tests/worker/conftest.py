"""One host as it really runs: a worker with its launcher and supervisors, a broker where a test wants one, the fake trainer as the rank."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from linux import cgroup, proc
from linux.cgroup import Cgroup
from store import attempts, events, hosts, jobs, logs, metrics
from store.db import Database
from store.jobs import NewJob
from store.models import Attempt, Event, Job
from store.settings import Settings
from store.states import TERMINAL_JOB, DeviceState, HostStatus, JobStatus
from tests.worker.processes import is_running
from worker.supervisor import run_lock

Operation = dict[str, Any]


DEADLINE_S = 30.0


TOKENIZER = '{"model": {"vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}}}'


def eventually(condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> Any:
    """Wait until the condition answers something true, and answer that."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {inspect.getsource(condition).strip()}"
        time.sleep(0.04)
    return answer


class Plane:
    """The test's view of one host: it starts and kills workers, submits programs, reads what came of them."""

    def __init__(self, tmp_path: Path, sqlite_template: Path, *, database_url: str = "") -> None:
        self.inputs = tmp_path / "inputs"
        self.settings = Settings(
            data_dir=tmp_path / "data",
            data_roots=(self.inputs,),
            database_url=database_url,
            host_name="testhost",
            heartbeat_s=0.25,
            lease_s=3.0,
            stop_grace_s=1.5,
            sibling_grace_s=0.25,
            host_loop_s=0.25,
        )
        self.settings.data_dir.mkdir()
        if not database_url:
            shutil.copyfile(sqlite_template, self.settings.data_dir / "longyard.db")
        self.database = Database(self.settings.db_url, busy_timeout_s=10.0)
        self.eventually = eventually
        (self.inputs / "tokenizer").mkdir(parents=True)
        (self.inputs / "tokenizer" / "tokenizer.json").write_text(TOKENIZER)
        self.flags = tmp_path
        self.extra: dict[str, str] = {}
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        names = (
            "data_dir",
            "database_url",
            "host_name",
            "heartbeat_s",
            "lease_s",
            "stop_grace_s",
            "sibling_grace_s",
            "host_loop_s",
        )
        given = {name: getattr(self.settings, name) for name in names}
        variables = {f"LONGYARD_{name.upper()}": str(value) for name, value in given.items()}
        return {
            **os.environ,
            **variables,
            "LONGYARD_DATA_ROOTS": str(self.inputs),
            "LONGYARD_TRAINER_MODULE": "tests.fake_trainer",
            "LONGYARD_DEVICES": "cpu:2",
            "LONGYARD_SECRET_OF_THE_TEST": "hidden",
            **self.extra,
        }

    def start(self, **extra: str) -> subprocess.Popen[bytes]:
        self.extra = extra
        with open(self.settings.data_dir / "worker.log", "ab") as output:
            worker = subprocess.Popen([sys.executable, "-m", "worker"], env=self.environment, stderr=output)
        self.workers.append(worker)
        self.eventually(self._is_online)
        return worker

    @contextmanager
    def broker(self) -> Generator[None]:
        """A Valkey server for this host, for a `with` block."""
        argv = [sys.executable, "-m", "store.embedded_valkey"]
        server = subprocess.Popen(argv, env=self.environment, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis.from_url(self.settings.broker_url) as client:
                self.eventually(lambda: _answers(client))
            yield
        finally:
            server.terminate()
            server.wait(timeout=DEADLINE_S)

    def submit(
        self,
        program: list[Operation],
        *,
        num_devices: int = 1,
        device_type: str = "cpu",
        time_limit_s: float | None = None,
        **train: Any,
    ) -> str:
        """A job whose ranks do what the program says. Answers its id."""
        path = self.inputs / f"{len(list(self.inputs.iterdir()))}.txt"
        path.write_text("\n".join(json.dumps(operation) for operation in program))
        spec = {
            "from_scratch": {},
            "tokenizer_name": str(self.inputs / "tokenizer"),
            "train_file": str(path),
            "do_eval": False,
        } | train
        new = NewJob("test", "demo", spec, num_devices, device_type, time_limit_s=time_limit_s)
        with self.database.write() as session:
            return jobs.submit(session, new, owner="admin")[0].id

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return jobs.get(session, job_id)

    def attempt(self, job_id: str) -> Attempt:
        with self.database.read() as session:
            found = attempts.newest(session, job_id)
        assert found is not None
        return found

    def events(self, job_id: str) -> list[Event]:
        with self.database.read() as session:
            found = list(events.page(session, job_id, limit=1000))
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        return found

    def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in self.events(job_id)]

    def log(self, job_id: str, *, rank: int = 0) -> bytes:
        """All that was committed of the newest attempt's log."""
        with self.database.read() as session:
            attempt = attempts.newest(session, job_id)
            if attempt is None:
                return b""
            return logs.read(session, attempt.id, rank=rank, limit_bytes=1 << 30)[1]

    def series(self, job_id: str, name: str) -> list[tuple[int, float | None]]:
        """Every committed point of the name, attempts in turn."""
        with self.database.read() as session:
            found, _ = metrics.series(session, job_id, names=[name], max_points=1 << 20)
        return [(step, value) for one in found for step, value, _, _ in one.points]

    def run_dir(self, job_id: str, number: int = 1) -> Path:
        return self.settings.run_dir(job_id, number)

    def until_log(self, job_id: str, text: bytes, *, rank: int = 0) -> None:
        self.eventually(lambda: text in self.log(job_id, rank=rank))

    def until_ended(self, job_id: str) -> Job:
        self.eventually(lambda: self.job(job_id).status in TERMINAL_JOB)
        return self.job(job_id)

    def until_status(self, job_id: str, status: JobStatus) -> Job:
        self.eventually(lambda: self.job(job_id).status is status)
        return self.job(job_id)

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.cancel(session, job_id)

    def supervisor(self, job_id: str, number: int = 1) -> int:
        pid = run_lock.holder(self.run_dir(job_id, number))
        assert pid is not None, "no supervisor holds the attempt"
        return pid

    def ranks(self, job_id: str) -> list[int]:
        return proc.of_attempt(self.attempt(job_id).id)

    def launcher(self) -> int:
        (pid,) = [child.pid for child in psutil.Process(self.workers[-1].pid).children()]
        return pid

    def assert_clean(self, job_id: str) -> None:
        """No process of the job's newest attempt, no supervisor, and its devices are free."""
        attempt = self.attempt(job_id)
        assert proc.of_attempt(attempt.id) == []
        self.eventually(lambda: run_lock.holder(self.run_dir(job_id, attempt.number)) is None)
        with self.database.read() as session:
            views = [device.device for host in hosts.all_hosts(session) for device in host.devices]
        assert all(device.attempt_id != attempt.id for device in views)
        assert all(device.state in (DeviceState.FREE, DeviceState.HELD) for device in views)

    def kill_worker(self) -> None:
        """The worker and its launcher, at once, as `longyard up` takes them along."""
        pids = [self.launcher(), self.workers[-1].pid]
        proc.send(pids, signal.SIGKILL)
        self.workers[-1].wait()
        self.eventually(lambda: not psutil.pid_exists(pids[0]))

    def end_jobs(self) -> None:
        """Whatever the test left behind: cancelled, and its devices free."""
        with self.database.write() as session:
            left = [job.id for job in jobs.page(session, limit=1000).rows if job.status not in TERMINAL_JOB]
            for job_id in left:
                jobs.cancel(session, job_id)
        for job_id in left:
            self.until_ended(job_id)

    def stop(self) -> None:
        """End whatever is left, by pid, and see it gone."""
        known = [worker.pid for worker in self.workers if worker.poll() is None]
        known += [pid for worker in known for pid in proc.descendants(worker)]
        known += [pid for path in self.settings.jobs_dir.glob("*/a*") if (pid := run_lock.holder(path))]
        known += [pid for supervisor in known for pid in proc.descendants(supervisor)]
        proc.send(sorted(set(known)), signal.SIGKILL)
        for worker in self.workers:
            worker.wait()
        self.eventually(lambda: not any(is_running(pid) for pid in known))
        for path in self.settings.jobs_dir.glob(f"*/a*/{cgroup.FILE}"):
            Cgroup(Path(path.read_text())).remove()
        self.database.dispose()

    def _is_online(self) -> bool:
        with self.database.read() as session:
            views = hosts.all_hosts(session)
        return any(view.host.status is HostStatus.ONLINE for view in views)


@pytest.fixture
def plane(tmp_path: Path, sqlite_template: Path) -> Iterator[Plane]:
    """A host of the test's own, nothing of it started."""
    plane = Plane(tmp_path, sqlite_template)
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Plane]:
    plane = Plane(tmp_path_factory.mktemp("host"), sqlite_template)
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def host(shared_host: Plane) -> Iterator[Plane]:
    """A host whose worker runs, shared by the tests that leave it alone; no broker: everything is found by the database."""
    yield shared_host
    shared_host.end_jobs()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
