"""Owns `./run demo`: the whole way once, over HTTP like any other client, on a plane of its own or one that runs already."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from cli import client, dashboard, plane, progress, step, tables
from cli.client import Json
from cli.install import ROOT

EXAMPLES = ROOT / "examples"
INPUTS = {
    "train_file": EXAMPLES / "corpus" / "train_corpus.txt",
    "validation_file": EXAMPLES / "corpus" / "test_corpus.txt",
    "tokenizer_name": EXAMPLES / "lf_token",
}
START_S = 90.0
CANCEL_S = 90.0


def main(argv: Sequence[str]) -> int:
    """Returns 0 when the job succeeded, 1 when not. A KeyboardInterrupt leaves no process and no job behind."""
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
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.default_int_handler)
    try:
        return _demo(environment)
    except (client.Unreachable, plane.PlaneError) as error:
        print(f"\n{client.printable(str(error))}", file=sys.stderr)
    except client.Problem as problem:
        tables.problem(problem)
    return 1


def up_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What `./run up` and the demo add: specs may name files in examples/."""
    roots = [root for root in environment.get("LONGYARD_DATA_ROOTS", "").split(":") if root]
    return {**environment, "LONGYARD_DATA_ROOTS": ":".join(dict.fromkeys([*roots, str(EXAMPLES)]))}


def _demo(environment: dict[str, str]) -> int:
    dashboard.build()
    if not all(path.exists() for path in [*INPUTS.values(), INPUTS["tokenizer_name"] / "vocab.json"]):
        argv = [sys.executable, "-P", "-m", "examples.build"]
        step.run("making a corpus and a tokenizer from Python's own documentation", argv, cwd=ROOT, env=environment)
    with _running_plane(environment) as http:
        print(f"Dashboard: {client.login_link(http)}   (opens once)\n", flush=True)
        job = _submit(http)
        print(f"job {job['id']} submitted: POST {http.base_url}/jobs", flush=True)
        job = _follow(http, job)
        print()
        tables.outcome(job)
        print(
            "\n`./run up` starts the control plane and stays: the dashboard shows this job, and takes yours.",
            flush=True,
        )
    return 0 if job["status"] == "succeeded" else 1


def _submit(http: httpx.Client) -> Json:
    body: Json = {"name": "demo", "preset": "demo", "train": {name: str(path) for name, path in INPUTS.items()}}
    body |= _placement(http)
    # A ^C between the request and its answer would leave a job nobody knows of; it waits the moment.
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        return client.request(http, "POST", "/jobs", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


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


def _follow(http: httpx.Client, job: Json) -> Json:
    try:
        return progress.follow(http, job)
    except KeyboardInterrupt:
        print("\ncancelling the demo's job", file=sys.stderr, flush=True)
        client.request(http, "POST", f"/jobs/{job['id']}/cancel")
        deadline = time.monotonic() + CANCEL_S
        while job["status"] not in progress.TERMINAL and time.monotonic() < deadline:
            time.sleep(0.1)
            job = client.request(http, "GET", f"/jobs/{job['id']}")
        raise


@contextmanager
def _running_plane(environment: dict[str, str]) -> Generator[httpx.Client]:
    """The plane of the data directory: the one that runs, else one that is started here and stopped at the end."""
    data_dir = client.data_dir(environment)
    http = _ready(data_dir, environment)
    if http is not None:
        print(f"a plane runs on {data_dir} already: {http.base_url}", flush=True)
        yield http
        return
    environment.setdefault("LONGYARD_PORT", _port())
    log = plane.make_data_dir(data_dir) / "up.log"
    with open(log, "wb") as output:
        up = _start(environment, output)
    try:
        yield _wait(up, data_dir, environment, log)
    finally:
        _stop(up)


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


def _stop(up: subprocess.Popen[bytes]) -> None:
    """A ^C while it stops hurries it, by the same signal."""
    while up.poll() is None:
        up.terminate()
        try:
            up.wait()
        except KeyboardInterrupt:
            continue


def _port() -> str:
    """The usual port, so that the links stay; any free one where something else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8642))
        except OSError:
            return "0"
    return "8642"
