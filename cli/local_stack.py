"""Owns the processes of `longyard up`: embedded Valkey, migrations, the API and one worker on this machine.

It starts the other rooms as programs and knows nothing of their insides. Supervisors are not its children: they outlive it.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from cli import client, console
from linux.child import python_path

START_S = 60.0
MAX_BACK_OFF_S = 30.0
STEADY_S = 60.0
HURRY_S = 15.0
LOG_BYTES = 10 << 20
LAST_WORDS_BYTES = 4096


class PlaneError(Exception):
    """The plane cannot be started here; the message says why and what to do."""


@dataclass
class Part:
    """One child. `on_our_death` is what the kernel sends it when we are killed; `stop_s` is what a stop may take."""

    name: str
    module: str
    on_our_death: signal.Signals
    stop_s: float
    child: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    restart_at: float | None = None


@dataclass
class Plane:
    """The processes of one machine, from start() to stop(). Lives in the main thread: the death signals hang on it."""

    data_dir: Path
    environment: dict[str, str]
    stops: int = 0
    parts: list[Part] = field(default_factory=list[Part])
    _logs_begin: dict[str, int] = field(default_factory=dict[str, int])
    _wake: socket.socket = field(init=False)
    _lock: IO[str] | None = None

    def __post_init__(self) -> None:
        self._wake, waker = socket.socketpair()
        self._wake.setblocking(False)
        waker.setblocking(False)
        self._waker = waker

    def run(self) -> int:
        """Start, tell, watch until a signal, stop. Returns the exit code. Raises PlaneError when it cannot start."""
        self._take_signals()
        try:
            url = self.start()
            if url is not None:
                announce(self.data_dir, url, devices=self.environment.get("LONGYARD_DEVICES", "auto"))
                self.watch()
        finally:
            stopped = self.stop()
        return 0 if stopped else 1

    def start(self) -> str | None:
        """Start every part. Returns the API's URL, or None when a stop was asked for meanwhile."""
        url_file = self.data_dir / "url"
        url_file.unlink(missing_ok=True)
        _check_port(self.environment)
        if not self.environment.get("LONGYARD_REDIS_URL"):
            self._add(Part("valkey", "store.embedded_valkey", signal.SIGTERM, stop_s=10))
        api = Part("api", "api", signal.SIGKILL, stop_s=15)
        if not self._migrate(meanwhile=api):
            return None
        url = self._wait_for_api(api, url_file)
        if url is None:
            return None
        # A restarted API must be found where the first one was, also when the port was chosen by the system.
        self.environment["LONGYARD_PORT"] = str(httpx.URL(url).port or 80)
        # SIGTERM is a worker's drain; when we are killed its attempts are to go on, so it just ends.
        grace_s = float(self.environment.get("LONGYARD_STOP_GRACE_S") or 30)
        self._add(Part("worker", "worker", signal.SIGKILL, stop_s=grace_s + 20))
        return url

    def watch(self) -> None:
        """Restart what dies, until a stop is asked for."""
        while not self.stops:
            now = time.monotonic()
            for part in self.parts:
                self._look_at(part, now)
            due = [part.restart_at - now for part in self.parts if part.restart_at is not None]
            self._sleep(max(0.0, min([5.0, *due])))

    def stop(self) -> bool:
        """The worker first, which checkpoints what trains; then the API, then the broker. A second signal hurries.

        Returns whether all of them stopped as they should.
        """
        stopped = True
        for part in reversed(self.parts):
            if part.child is not None and part.child.poll() is None:
                stopped = self._stop_part(part, part.child) and stopped
        self.parts.clear()
        (self.data_dir / "url").unlink(missing_ok=True)
        return stopped

    def _stop_part(self, part: Part, child: subprocess.Popen[bytes]) -> bool:
        if part.name == "worker":
            console.say("stopping: running attempts write a checkpoint and go back to the queue (^C again to hurry)")
        child.terminate()
        deadline, heeded = time.monotonic() + part.stop_s, max(self.stops, 1)
        while child.poll() is None:
            if self.stops > heeded:
                # Once more: the worker leaves without waiting for checkpoints. A third time: it is killed.
                deadline = min(deadline, time.monotonic() + (HURRY_S if heeded == 1 else 0))
                heeded = self.stops
                child.terminate()
            left = deadline - time.monotonic()
            if left <= 0:
                console.say(f"{part.name} did not stop in time and was killed{_left_behind(part)}")
                child.kill()
                child.wait()
                return False
            self._sleep(min(left, 1.0))
        if child.returncode not in (0, -signal.SIGTERM):
            console.say(f"{part.name} {_ended(child.returncode)} while it was stopping{_left_behind(part)}")
            return False
        return True

    def _migrate(self, *, meanwhile: Part) -> bool:
        """`meanwhile` starts too: it leaves the database alone until the migrations have ended, but has much to import before."""
        child = self._spawn("migrations", ["migrations"], signal.SIGKILL)
        theirs, ours = os.pipe()
        try:
            self._add(meanwhile, after=theirs)
            while child.poll() is None and not self.stops:
                self._sleep(1.0)
        finally:
            os.close(theirs)
            os.close(ours)
        if self.stops:
            console.end(child)
            return False
        if child.returncode != 0:
            how = f"the database's migrations {_ended(child.returncode)}, so nothing was started"
            raise PlaneError(f"{self._log_tail('migrations')}\n{how}".lstrip())
        return True

    def _wait_for_api(self, api: Part, url_file: Path) -> str | None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not self.stops:
            assert api.child is not None
            if api.child.poll() is not None:
                raise PlaneError(f"{self._log_tail('api')}\nthe API ended with exit code {api.child.returncode}")
            url = client.read_text(url_file)
            if url and client.answers(url):
                return url
            self._sleep(0.05)
        if self.stops:
            return None
        raise PlaneError(f"{self._log_tail('api')}\nthe API did not answer within {START_S:.0f} s")

    def _look_at(self, part: Part, now: float) -> None:
        if part.restart_at is not None:
            if part.restart_at <= now:
                self._start(part)
            return
        assert part.child is not None
        code = part.child.poll()
        if code is None:
            return
        part.failures = 0 if now - part.started > STEADY_S else part.failures
        delay_s = min(0.25 * 2**part.failures, MAX_BACK_OFF_S)
        part.failures += 1
        part.restart_at = now + delay_s
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        console.say(f"{part.name} {how}; starting it again in {delay_s:.1f} s (log: {self._log(part.name)})")
        if words := _last_words(self._log(part.name)):
            console.say(f"  {client.printable(words)}")

    def _add(self, part: Part, *, after: int | None = None) -> Part:
        self._start(part, after=after)
        self.parts.append(part)
        return part

    def _start(self, part: Part, *, after: int | None = None) -> None:
        part.child = self._spawn(part.name, [part.module], part.on_our_death, after=after)
        part.started, part.restart_at = time.monotonic(), None

    def _spawn(
        self, name: str, module: list[str], on_our_death: signal.Signals, *, after: int | None = None
    ) -> subprocess.Popen[bytes]:
        """`after`: a descriptor that the program is to see closed before it goes to work."""
        # -P, and our own directory first: what the user's directories happen to be called must not shadow our rooms.
        environment = {**self.environment, "PYTHONPATH": python_path(self.environment)}
        argv = [sys.executable, "-P", "-m", *module, *(() if after is None else ("--after", str(after)))]
        with _open_log(self._log(name)) as log:
            self._logs_begin[name] = log.tell()
            return console.start(
                argv,
                cwd=Path.cwd(),
                env=environment,
                output=log,
                on_our_death=on_our_death,
                pass_fds=() if after is None else (after,),
            )

    def _log(self, name: str) -> Path:
        return self.data_dir / "log" / f"{name}.log"

    def _log_tail(self, name: str) -> str:
        """The last words of the process started last; what others before it said in the same file is not its reason."""
        with open(self._log(name), "rb") as log:
            log.seek(self._logs_begin[name])
            lines = log.read().decode("utf-8", "replace").splitlines()[-15:]
        return "\n".join("  " + client.printable(line) for line in lines)

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def _ask_to_stop(self, signum: int, frame: object) -> None:
        self.stops += 1

    def _sleep(self, seconds: float) -> None:
        """Until the time is over or any signal arrives: a child's death, a stop."""
        select.select([self._wake], [], [], seconds)
        with suppress(BlockingIOError):
            self._wake.recv(4096)


def up(environment: Mapping[str, str]) -> int:
    """Run the plane that `environment` (LONGYARD_*) describes, here, until ^C. One a data directory: a second one only tells."""
    data_dir = client.data_dir(environment)
    make_data_dir(data_dir)
    # What is written there is for its owner; the parents it lies in are not ours to close.
    os.umask(0o077)
    with open(data_dir / "up.lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _tell_running(data_dir)
        return Plane(data_dir, {**environment, "LONGYARD_DATA_DIR": str(data_dir)}).run()


def make_data_dir(data_dir: Path) -> Path:
    """For its owner alone, where it is not there yet. Answers where the processes of a plane log. Raises PlaneError."""
    logs = data_dir / "log"
    try:
        # One by one: mkdir's mode is not for the parents it makes.
        for directory in (data_dir, logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlaneError(f"{data_dir} cannot be the data directory: {error.strerror}") from error
    return logs


def announce(data_dir: Path, url: str, *, devices: str | None = None, title: str = "Longyard is running.") -> None:
    """Where it is and how to get in, with a fresh one-time link."""
    link = client.login_link(client.connect(data_dir=data_dir))
    print(title)
    print(f"  Dashboard  {link}   (opens once, for 10 minutes; `longyard login` makes another)")
    print(f"  API        {url}   (token in {data_dir / 'token'})")
    print(f"  Data       {data_dir}   (logs in {data_dir / 'log'})")
    if devices is not None:
        print(f"  Devices    {devices}")
        print("^C stops it; what trains writes a checkpoint first and goes on at the next start.")
    sys.stdout.flush()


def _tell_running(data_dir: Path) -> int:
    deadline = time.monotonic() + START_S
    waiter = select.poll()
    while time.monotonic() < deadline:
        url = client.read_text(data_dir / "url")
        if url and client.answers(url):
            announce(data_dir, url, title=f"Longyard is running already on {data_dir}.")
            return 0
        waiter.poll(100)
    raise PlaneError(f"another `up` holds {data_dir / 'up.lock'} but its API does not answer; see {data_dir / 'log'}")


def _check_port(environment: Mapping[str, str]) -> None:
    host, given = environment.get("LONGYARD_HOST") or "127.0.0.1", environment.get("LONGYARD_PORT") or "8642"
    if not given.isdecimal() or int(given) > 65535:
        raise PlaneError(f"LONGYARD_PORT={given} is no port; give 0 to 65535, 0 for any free one")
    port = int(given)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            way_out = "choose another port by --port, or 0 for any free one"
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                way_out = "choose an address of this machine by --host"
            raise PlaneError(f"{host}:{port} cannot be taken ({error.strerror}); {way_out}") from error


def _last_words(path: Path) -> str:
    """The log's last line: of a program that refused to start, why."""
    with suppress(OSError), open(path, "rb") as log:
        log.seek(max(0, path.stat().st_size - LAST_WORDS_BYTES))
        lines = log.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _left_behind(part: Part) -> str:
    return "; what trains goes on, and the next start follows it" if part.name == "worker" else ""


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))
