"""Owns `./run demo`: the whole way once, over HTTP like any other client, on a plane of its own or one that runs already."""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx
import psutil

from cli import client, dashboard, plane, progress, step, tables
from cli.client import Json
from cli.install import ROOT
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
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_CHILD_SUBREAPER = 36


def main(argv: Sequence[str]) -> int:
    """Returns 0 when the job succeeded, 1 when not. However it ends, it leaves no process of its own and no job that would go on.

    Raises KeyboardInterrupt, once at most.
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
    for sign in INTERRUPTS:
        signal.signal(sign, _interrupt)
    # Supervisors outlive their worker; here what lost its parent becomes our child instead of init's, so that we can end it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        return _demo(environment)
    except (client.Unreachable, plane.PlaneError) as error:
        print(f"\n{client.printable(str(error))}", file=sys.stderr)
    except client.Problem as problem:
        tables.problem(problem)
    finally:
        _surely(_end_children)
    return 1


def up_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What `./run up` and the demo add: specs may name files in examples/."""
    roots = [root for root in environment.get("LONGYARD_DATA_ROOTS", "").split(":") if root]
    return {**environment, "LONGYARD_DATA_ROOTS": ":".join(dict.fromkeys([*roots, str(EXAMPLES)]))}


def _interrupt(signum: int, frame: object) -> None:
    """The first ^C interrupts. What it sets off takes a bounded time, and no further one may break it off."""
    for sign in INTERRUPTS:
        signal.signal(sign, signal.SIG_IGN)
    raise KeyboardInterrupt


def _surely(act: Callable[[], None]) -> None:
    """To its end, also where the one interrupt there can be arrives meanwhile."""
    try:
        act()
    except KeyboardInterrupt:
        act()
        raise


def _demo(environment: dict[str, str]) -> int:
    dashboard.build()
    if not build.is_whole():
        argv = [sys.executable, "-P", "-m", "examples.build"]
        step.run("making a corpus and a tokenizer from Python's own documentation", argv, cwd=ROOT, env=environment)
    http = _plane(environment)
    print(f"Dashboard: {client.login_link(http)}   (opens once)\n", flush=True)
    job = _train(http)
    print()
    tables.outcome(job)
    print("\n`./run up` starts the control plane and stays: the dashboard shows this job, and takes yours.", flush=True)
    return 0 if job["status"] == "succeeded" else 1


def _train(http: httpx.Client) -> Json:
    """Submit the job and show it until it ends. Interrupted, or with the terminal gone, it is cancelled first."""
    body: Json = {"name": "demo", "preset": "demo", "train": {name: str(path) for name, path in INPUTS.items()}}
    body |= _placement(http)
    job: Json = {}
    try:
        # A ^C between the request and its answer would leave a job nobody knows of; it waits the moment.
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            job = _submit(http, body)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        print(f"job {job['id']} submitted: POST {http.base_url}/jobs", flush=True)
        return progress.follow(http, job)
    except (KeyboardInterrupt, OSError):
        if job:
            _surely(lambda: _cancel(http, job))
        raise


def _submit(http: httpx.Client, body: Json) -> Json:
    try:
        return client.request(http, "POST", "/jobs", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
    except client.Problem as problem:
        if any("outside the data roots" in error["message"] for error in problem.body.get("errors", ())):
            raise plane.PlaneError(
                f"the plane that runs at {http.base_url} does not have {EXAMPLES} among its data roots: stop it and run"
                " `./run demo` again, or start it with that directory in LONGYARD_DATA_ROOTS"
            ) from problem
        raise


def _cancel(http: httpx.Client, job: Json) -> None:
    """The request first: nothing may depend on whether there still is a terminal to tell it on."""
    with suppress(client.Unreachable, client.Problem):
        job = client.request(http, "POST", f"/jobs/{job['id']}/cancel")
        with suppress(OSError):
            print("\ncancelling the demo's job", file=sys.stderr, flush=True)
        deadline = time.monotonic() + CANCEL_S
        while job["status"] not in progress.TERMINAL and time.monotonic() < deadline:
            time.sleep(0.1)
            job = client.request(http, "GET", f"/jobs/{job['id']}")


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
    raise plane.PlaneError(
        f"no worker came up within {START_S:.0f} s; see the logs beside the data directory's `token`"
    )


def _plane(environment: dict[str, str]) -> httpx.Client:
    """The plane of the data directory: the one that runs, else one that is started here; the demo's end is its end."""
    data_dir = client.data_dir(environment)
    http = _ready(data_dir, environment)
    if http is not None:
        print(f"a plane runs on {data_dir} already: {http.base_url}", flush=True)
        return http
    environment.setdefault("LONGYARD_PORT", _port())
    log = plane.make_data_dir(data_dir) / "up.log"
    with open(log, "wb") as output:
        up = _start(environment, output)
    return _wait(up, data_dir, environment, log)


def _start(environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "cli", "up"]
    return step.start(argv, cwd=Path.cwd(), env=environment, output=output)


def _wait(up: subprocess.Popen[bytes], data_dir: Path, environment: dict[str, str], log: Path) -> httpx.Client:
    deadline = time.monotonic() + START_S
    step.say("starting the control plane")
    while time.monotonic() < deadline:
        http = _ready(data_dir, environment)
        if http is not None:
            return http
        if up.poll() is not None:
            raise plane.PlaneError(f"{client.read_text(log) or ''}\nthe control plane did not start")
        time.sleep(0.1)
    raise plane.PlaneError(f"the control plane was not ready within {START_S:.0f} s; see {log.parent}")


def _ready(data_dir: Path, environment: dict[str, str]) -> httpx.Client | None:
    try:
        # A LONGYARD_URL is another plane, on which the demo's files need not be.
        local = {name: value for name, value in environment.items() if name not in ("LONGYARD_URL", "LONGYARD_TOKEN")}
        http = client.connect(data_dir=data_dir, environment=local)
        client.request(http, "GET", "/readyz")
    except (client.Unreachable, client.Problem):
        return None
    return http


def _end_children() -> None:
    """The plane, as its ^C does; then what outlived it: supervisors end their attempts by SIGINT, and what does not is killed.

    Where nothing of ours runs, as on a plane that was there before, it does nothing.
    """
    for sign, patience_s in (
        (signal.SIGTERM, STOP_S), (signal.SIGINT, HURRY_S), (signal.SIGKILL, KILLED_S), (signal.SIGKILL, KILLED_S),
    ):  # fmt: skip
        children = psutil.Process().children(recursive=sign == signal.SIGKILL)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(sign)
        psutil.wait_procs(children, timeout=patience_s)


def _port() -> str:
    """The usual port, so that the links stay; any free one where something else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8642))
        except OSError:
            return "0"
    return "8642"
