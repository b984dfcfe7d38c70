"""Owns `./run demo`: the whole way once, over HTTP like any other client, on a plane of its own or one that runs already."""

import argparse
import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import psutil

from cli import client, console, follow, local_stack
from cli import output as tables
from cli.client import Json
from dev import web_build
from dev.bootstrap import ROOT
from examples import build

EXAMPLES = ROOT / "examples"
INPUTS = {
    "train_file": build.CORPUS / "train_corpus.txt",
    "validation_file": build.CORPUS / "test_corpus.txt",
    "tokenizer_name": build.TOKENIZER,
}
START_S = 90.0
CANCEL_S = 90.0
STOP_S = 120.0
HURRY_S = 15.0
KILLED_S = 5.0
SUBMITS = 3
REMIND_S = 12.0
"""More than step.end takes, which a reminder would break off."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Interrupts:
    """The handler of ^C and its like: each raises KeyboardInterrupt, until the demo has taken one, or ends anyway.

    Whoever takes it sets the attribute in the first statement of an except or finally: that calls nothing, so no signal can come between.
    """

    taken: bool = False

    def __call__(self, signum: int, frame: object) -> None:
        if self.taken:
            return
        # Raised in a __del__ or in a generator that is closed, it is lost; and a SIGTERM is often sent once only.
        signal.setitimer(signal.ITIMER_REAL, REMIND_S)
        raise KeyboardInterrupt

    def listen(self) -> None:
        for sign in INTERRUPTS:
            # Under nohup the terminal may go. An ignored ^C is only what shells do to jobs in the background.
            if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:
                signal.signal(sign, self)


@dataclass
class Wanted:
    """The demo's job, from before it is asked for: with the key, a second asking finds the job of the first."""

    body: Json
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    job: Json | None = None


def main(argv: Sequence[str]) -> int:
    """Returns 0 when the job succeeded, 1 when not. However it ends, it leaves no process of its own and no job that would go on.

    Raises KeyboardInterrupt, with the signals blocked from there on.
    """
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Train a small Longformer end to end on this machine."
    )
    parser.add_argument("--data-dir", help="where the plane keeps its things [.longyard beside this checkout]")
    parser.add_argument("--port", type=int, help="the port of a plane that has to be started [8642, or a free one]")
    options = parser.parse_args(argv)
    environment = up_environment(os.environ)
    if options.data_dir:
        environment["LONGYARD_DATA_DIR"] = options.data_dir
    if options.port is not None:
        environment["LONGYARD_PORT"] = str(options.port)
    inherited = frozenset(psutil.Process().children(recursive=True))
    interrupts = Interrupts()
    try:
        interrupts.listen()
        # Supervisors outlive their worker; here what lost its parent becomes our child instead of init's, so that we can end it.
        _subreaper(True)
        return _demo(environment, interrupts)
    except (client.Unreachable, local_stack.PlaneError) as error:
        print(f"\n{client.printable(str(error))}", file=sys.stderr)
    except client.Problem as problem:
        tables.problem(problem)
    finally:
        interrupts.taken = True
        # Python puts the default back in its last moments, where one more ^C would change the exit code.
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        _end_children(inherited, stop_s=_stop_s(environment))
    return 1


def up_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What `./run up` and the demo add: specs may name files in examples/."""
    roots = [root for root in environment.get("LONGYARD_DATA_ROOTS", "").split(":") if root]
    return {**environment, "LONGYARD_DATA_ROOTS": ":".join(dict.fromkeys([*roots, str(EXAMPLES)]))}


def _subreaper(on: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def _demo(environment: dict[str, str], interrupts: Interrupts) -> int:
    web_build.build()
    if not build.is_whole():
        argv = [sys.executable, "-P", "-m", "examples.build"]
        console.run("making a corpus and a tokenizer from Python's own documentation", argv, cwd=ROOT, env=environment)
    http = _plane(environment)
    print(f"Dashboard: {client.login_link(http)}   (opens once)\n", flush=True)
    job = _train(lambda: _connect(environment), interrupts)
    print()
    tables.outcome(job)
    print("\n`./run up` starts the control plane and stays: the dashboard shows this job, and takes yours.", flush=True)
    return 0 if job["status"] == "succeeded" else 1


def _train(connect: Callable[[], httpx.Client], interrupts: Interrupts) -> Json:
    """Submit the job and show it until it ends. Interrupted, with the terminal or the plane gone, it is cancelled first."""
    http = connect()
    body: Json = {"name": "demo", "preset": "demo", "train": {name: str(path) for name, path in INPUTS.items()}}
    wanted = Wanted(body | _placement(http))
    try:
        job = _submit(http, wanted)
        print(f"job {job['id']} submitted: POST {http.base_url}/jobs", flush=True)
        return _follow(http, job)
    except BaseException:
        interrupts.taken = True
        # By connections of its own: a ^C may have left the locks of the first one held.
        _cancel(connect, wanted)
        raise


def _submit(http: httpx.Client, wanted: Wanted) -> Json:
    for left in reversed(range(SUBMITS)):
        try:
            return _ask(http, wanted)
        except client.Unreachable:
            if not left:
                raise
        except client.Problem as problem:
            refused = [error["message"] for error in problem.body.get("errors", ()) if error["code"] == "path_refused"]
            if not refused:
                raise
            raise local_stack.PlaneError(
                f"the plane that runs at {http.base_url} does not take the files in {EXAMPLES} ({refused[0]}): stop it and run"
                " `./run demo` again, or start it with that directory in LONGYARD_DATA_ROOTS"
            ) from problem
    raise AssertionError("the last try returns or raises")


def _ask(http: httpx.Client, wanted: Wanted) -> Json:
    wanted.job = client.request(http, "POST", "/jobs", json=wanted.body, headers={"Idempotency-Key": wanted.key})
    return wanted.job


def _follow(http: httpx.Client, job: Json) -> Json:
    try:
        return follow.follow(http, job)
    except client.Unreachable as error:
        # What it says of a job that goes on is not so here.
        raise client.Unreachable(f"{http.base_url} does not answer any more") from error


def _cancel(connect: Callable[[], httpx.Client], wanted: Wanted) -> None:
    """Until the job has ended, however often the plane cannot answer: what is not cancelled goes on in the next plane."""
    deadline, asked = time.monotonic() + CANCEL_S, False
    while time.monotonic() < deadline:
        with suppress(client.Unreachable):
            try:
                with connect() as http:
                    job = wanted.job or _ask(http, wanted)
                    # The request first: nothing may depend on whether there still is a terminal to tell it on.
                    if not asked:
                        wanted.job = job = client.request(http, "POST", f"/jobs/{job['id']}/cancel")
                        asked = True
                        _tell("\ncancelling the demo's job")
                    else:
                        job = client.request(http, "GET", f"/jobs/{job['id']}")
                if job["status"] in follow.TERMINAL:
                    return
            except client.Problem as problem:
                # Any other refusal says that there is nothing to cancel: it has ended, or it never was.
                if problem.status < 500 and problem.status not in (408, 429):
                    return
        time.sleep(0.1)
    name = f"job {wanted.job['id']}" if wanted.job else "the demo's job, if there is one,"
    _tell(f"\n{name} could not be cancelled in {CANCEL_S:.0f} s; see `longyard jobs` when a plane runs there again")


def _tell(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _placement(http: httpx.Client) -> Json:
    """The preset asks for CPU slots; a host that offers accelerators only gets the job on one of those."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        online = [host for host in client.request(http, "GET", "/hosts")["data"] if host["status"] == "online"]
        if any(host["device_type"] == "cpu" for host in online):
            slots = max(len(host["devices"]) for host in online if host["device_type"] == "cpu")
            return {"num_devices": 1} if slots == 1 else {}
        if online:
            return {"device_type": online[0]["device_type"], "num_devices": 1}
        time.sleep(0.2)
    raise local_stack.PlaneError(
        f"no worker came up within {START_S:.0f} s; see the logs beside the data directory's `token`"
    )


def _plane(environment: dict[str, str]) -> httpx.Client:
    """The plane of the data directory: the one that runs, else one that is started here; the demo's end is its end."""
    data_dir = client.data_dir(environment)
    http = _ready(environment)
    if http is not None:
        # Its orphans are its own.
        _subreaper(False)
        print(f"a plane runs on {data_dir} already: {http.base_url}", flush=True)
        return http
    environment.setdefault("LONGYARD_PORT", _port())
    log = local_stack.make_data_dir(data_dir) / "up.log"
    with open(log, "wb") as output:
        up = _start(environment, output)
    return _wait(up, environment, log)


def _start(environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "cli", "up"]
    return console.start(argv, cwd=Path.cwd(), env=environment, output=output)


def _wait(up: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> httpx.Client:
    deadline = time.monotonic() + START_S
    console.say("starting the control plane")
    while time.monotonic() < deadline:
        http = _ready(environment)
        if http is not None:
            return http
        if up.poll() is not None:
            raise local_stack.PlaneError(f"{client.read_text(log) or ''}\nthe control plane did not start")
        time.sleep(0.1)
    raise local_stack.PlaneError(f"the control plane was not ready within {START_S:.0f} s; see {log.parent}")


def _ready(environment: dict[str, str]) -> httpx.Client | None:
    try:
        http = _connect(environment)
        client.request(http, "GET", "/readyz")
    except (client.Unreachable, client.Problem):
        return None
    return http


def _connect(environment: dict[str, str]) -> httpx.Client:
    # A LONGYARD_URL is another plane, on which the demo's files need not be.
    local = {name: value for name, value in environment.items() if name not in ("LONGYARD_URL", "LONGYARD_TOKEN")}
    return client.connect(data_dir=client.data_dir(environment), environment=local)


def _stop_s(environment: Mapping[str, str]) -> float:
    """What a plane of this environment may take to stop; one that cannot be read is refused by the plane itself."""
    try:
        grace_s = float(environment.get("LONGYARD_STOP_GRACE_S") or 0)
    except ValueError:
        return STOP_S
    return max(STOP_S, grace_s + 50) if math.isfinite(grace_s) else STOP_S


def _end_children(inherited: Set[psutil.Process], *, stop_s: float) -> None:
    """The plane, as its ^C does; then what outlived it: supervisors end their attempts by SIGINT, and what does not is killed.

    `inherited` is what ran before the demo did: a shell that becomes it by exec leaves it its background jobs, which stay.
    Where nothing of ours runs, as on a plane that was there before, it does nothing.
    """
    for sign, patience_s in (
        (signal.SIGTERM, stop_s), (signal.SIGINT, HURRY_S), (signal.SIGKILL, KILLED_S), (signal.SIGKILL, KILLED_S),
    ):  # fmt: skip
        ours = [child for child in psutil.Process().children() if child not in inherited]
        if sign == signal.SIGKILL:
            ours += [one for child in ours for one in _descendants(child)]
        for child in ours:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(sign)
        psutil.wait_procs(ours, timeout=patience_s)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _port() -> str:
    """The usual port, so that the links stay; any free one where something else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8642))
        except OSError:
            return "0"
    return "8642"
