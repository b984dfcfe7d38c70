"""Owns the warm process that forks supervisors: one thread, no connection, everything imported and used once. Both ends are here.

The worker's end is `Launcher`. The process itself is `python -m worker.forkserver.server --fd N`; it ends when the worker does,
and leaves its supervisors alone. A new one waits for the old one's lock.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from linux import child, proc
from linux.wakeup import Wake
from store.db import SUPERVISOR_BUSY_TIMEOUT_S, Database
from store.pubsub import Notifier
from store.settings import Settings
from worker import journal
from worker.forkserver import heap
from worker.forkserver.warmup import rehearse
from worker.supervisor import startup as launch
from worker.supervisor.startup import Launch

MESSAGE_BYTES: Final = 64 * 1024
LOCK_RETRY_S: Final = 0.01
CLOSE_S: Final = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What the launcher says: that it is ready, or that a supervisor ended with an exit code (or -signal).

    `lost` is said of itself: it has ended, with all it knew.
    """

    kind: Literal["ready", "ended", "lost"]
    attempt_id: str = ""
    exit_code: int = 0


class Launcher:
    """The worker's end of one launcher process. It lives in the thread that started it: when that one ends, the launcher does.

    `stderr`: a descriptor for what it has to say; the worker's own without one.
    """

    def __init__(self, *, stderr: int | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-P", "-m", "worker.forkserver.server", "--fd", str(theirs.fileno())]
            self._process = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": child.python_path()},
            )
        ours.setblocking(False)
        self._socket = ours
        self.is_alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._socket.fileno()

    def launch(self, request: Launch) -> bool:
        """False where it cannot be asked now: the host loop does it again."""
        try:
            self._socket.send(json.dumps(asdict(request)).encode())
        except OSError:
            return False
        return True

    def heard(self) -> list[Told]:
        """What it said since the last call; `is_alive` turns False when it has ended."""
        told: list[Told] = []
        while self.is_alive:
            try:
                message = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return told
            except ConnectionError:
                message = b""
            if not message:
                self.is_alive = False
                break
            told.append(Told(**json.loads(message)))
        return told

    def kill(self) -> None:
        """`heard` will notice."""
        self._process.kill()

    def close(self) -> int:
        """It sees the end of the socket and leaves; its supervisors stay. Answers its exit code."""
        self._socket.close()
        try:
            return self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    worker_pid = os.getppid()
    proc.die_with_parent(worker_pid, by=signal.SIGKILL)
    settings = Settings()
    journal.configure(settings)
    connection = socket.socket(fileno=parser.parse_args().fd)
    connection.setblocking(False)
    proc.name_this("ly-launcher")
    proc.become_subreaper()
    database = Database(settings.db_url, busy_timeout_s=SUPERVISOR_BUSY_TIMEOUT_S, pool_size=1)
    notifier = Notifier(settings.broker_url)
    rehearse(database, notifier)
    heap.settle()
    with open(lock_path(settings), "a", encoding="ascii") as lock:
        _take(lock.fileno())
        _Forker(settings, database, notifier, connection).run()
        # Nothing here is worth a tidy end, and the worker waits for it.
        os._exit(0)


def lock_path(settings: Settings) -> Path:
    settings.host_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.host_dir / "launcher.lock"


def _take(descriptor: int) -> None:
    """An older launcher of this host is leaving; nobody waits for long, and the worker's death ends the waiting."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_RETRY_S)


class _Forker:
    """The loop of the launcher process. It blocks on nothing but its two descriptors."""

    def __init__(self, settings: Settings, database: Database, notifier: Notifier, connection: socket.socket) -> None:
        self._settings, self._database, self._notifier = settings, database, notifier
        self._connection = connection
        self._attempts: dict[int, str] = {}
        self._wake = Wake()

    def run(self) -> None:
        """Until the worker's end of the socket is closed."""
        signal.set_wakeup_fd(self._wake.fd_for_signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        # ^C goes to every process of a terminal: when to leave is the worker's to say.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._tell(Told("ready"))
        while True:
            self._reap()
            try:
                message = self._connection.recv(MESSAGE_BYTES)
            except BlockingIOError:
                self._wake.wait(3600.0, also=[self._connection.fileno()])
                continue
            except ConnectionError:
                return
            if not message:
                return
            self._fork(Launch(**json.loads(message)))

    def _fork(self, request: Launch) -> None:
        pid = os.fork()
        if pid == 0:
            code = launch.FAILED
            try:
                self._leave_all_behind(request)
                code = launch.run(self._settings, self._database, self._notifier, request)
            except BaseException:  # the process's edge
                log.exception("the supervisor failed")
            finally:
                os._exit(code)
        self._attempts[pid] = request.attempt_id

    def _leave_all_behind(self, request: Launch) -> None:
        """In the child: a session of its own, no descriptor, lock or signal handler of the launcher's."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        run_dir = self._settings.run_dir(request.job_id, request.number)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        output = os.open(run_dir / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, target)
        # A name that looks like a hub's is looked for here as a directory too: there is none.
        os.chdir(run_dir)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        journal.stand_for(attempt=request.attempt_id, job=request.job_id)
        proc.name_this("ly-supervisor")

    def _reap(self) -> None:
        ended, _ = proc.reap()
        for pid, exit_code in ended:
            # Others are orphans of supervisors that were killed: they came to this subreaper.
            if attempt_id := self._attempts.pop(pid, None):
                self._tell(Told("ended", attempt_id, exit_code))

    def _tell(self, told: Told) -> None:
        # A worker that does not listen finds out by the supervisor's lock.
        with suppress(OSError):
            self._connection.send(json.dumps(asdict(told)).encode())


if __name__ == "__main__":
    main()
