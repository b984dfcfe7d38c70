"""The commands of `longyard`. They talk HTTP; `up`, `doctor` and `convert` alone start processes.

Exit codes: 0 done, 1 the followed job failed, 2 the request was refused or not understood, 3 nobody answers or the token is unknown.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from cli import client, console, job_spec, local_stack, output
from cli import follow as progress

app = typer.Typer(
    name="longyard",
    help="Train Longformer: submit jobs to a Longyard control plane and follow them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobId = Annotated[str, typer.Argument(help="the job's id", metavar="JOB")]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB...")]
HostName = Annotated[str, typer.Argument(metavar="HOST")]
HostNames = Annotated[list[str], typer.Argument(metavar="HOST...")]
DeviceIndices = Annotated[list[int], typer.Argument(min=0, metavar="DEVICE...")]
AsJson = Annotated[bool, typer.Option("--json", help="print the answer as it is")]


def entry(name: str = "longyard") -> None:
    """The process's edge: every error becomes a sentence and an exit code. `name`: what it was called by, for its help."""
    try:
        app(prog_name=name)
    except client.Problem as problem:
        output.problem(problem)
        sys.exit(3 if problem.status >= 500 else 2)
    except (job_spec.SpecError, local_stack.PlaneError, console.StepError) as error:
        print(f"longyard: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, job_spec.SpecError) else 1)
    except client.Unreachable as error:
        print(f"longyard: {client.printable(str(error))}", file=sys.stderr)
        sys.exit(3)
    except BrokenPipeError:
        # The reader has seen enough; without this, closing stdout complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def up(
    data_dir: Annotated[Path | None, typer.Option(help="database, token, jobs and logs live here [.longyard]")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port to listen on; 0: any free one [8642]")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="what this machine offers: auto, cpu:4, npu:8 [auto]")] = None,
    data_root: Annotated[
        list[Path] | None, typer.Option(help="a directory specs may name files in; repeatable")
    ] = None,
) -> None:
    """Start the control plane on this machine and stay: API, dashboard, broker, one worker."""
    options = {"DATA_DIR": data_dir, "HOST": host, "PORT": port, "DEVICES": devices}
    environment = {
        **os.environ,
        **{f"LONGYARD_{name}": str(value) for name, value in options.items() if value is not None},
    }
    if data_root:
        environment["LONGYARD_DATA_ROOTS"] = ":".join(str(root.resolve()) for root in data_root)
    raise typer.Exit(local_stack.up(environment))


@app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(help="a JSON spec; - reads it from stdin")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="a preset to start from; see `longyard presets`")
    ] = None,
    name: Annotated[str | None, typer.Option(help="what to call the job")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="num_devices=2, learning_rate=1e-4, labels.team=nlp"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="stay and show its progress; exit 1 if it fails")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="say what it would take and where it would run; queue nothing")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="the same key submits the same job once")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job: a spec file, or a preset with values laid over it."""
    body = job_spec.build(file, preset=preset, name=name, settings=settings or [])
    http = _connect()
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    params = {"dry_run": "true"} if dry_run else {}
    job = client.request(http, "POST", "/jobs", json=body, headers=headers, params=params)
    if dry_run:
        _print_json(job) if as_json else output.dry_run(job)
        return
    if not follow:
        _print_json(job) if as_json else print(
            f"{job['id']}  {client.printable(job['status_reason'] or job['status'])}"
        )
        return
    print(f"job {job['id']}", file=sys.stderr)
    job = progress.follow(http, job)
    _print_json(job) if as_json else output.outcome(job)
    raise typer.Exit(0 if job["status"] == "succeeded" else 1)


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, failed or cancelled")] = None,
    label: Annotated[str | None, typer.Option(metavar="KEY=VALUE", help="only jobs that carry this label")] = None,
    text: Annotated[str | None, typer.Option("--text", "-q", help="only jobs whose name contains this")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs."""
    wanted = {"status": status, "label": label, "q": text, "limit": limit}
    page = client.request(
        _connect(), "GET", "/jobs", params={key: value for key, value in wanted.items() if value is not None}
    )
    _print_json(page) if as_json else output.jobs(page)


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """One job: what it is, where it runs, how far it is, how it ended."""
    job = client.request(_connect(), "GET", f"/jobs/{job_spec.job_id(job_id)}")
    _print_json(job) if as_json else output.job(job)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stay until the job has ended")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="whose output [0, or the rank that failed]")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="which attempt [the newest]")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="only the last lines")] = None,
    grep: Annotated[str | None, typer.Option(help="only lines that contain this text")] = None,
) -> None:
    """The output of one rank."""
    wanted = {"rank": rank, "attempt": attempt, "tail": tail, "grep": grep, "follow": "true" if follow else None}
    params = {key: value for key, value in wanted.items() if value is not None}
    # A job can be silent for as long as a step takes.
    timeout = httpx.Timeout(None if follow else 60.0, connect=5.0)
    http = _connect()
    try:
        with http.stream("GET", f"/jobs/{job_spec.job_id(job_id)}/logs", params=params, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
                client.raise_for_problem(answer)
            for line in answer.iter_lines():
                print(client.colored(line), flush=follow)
    except httpx.TransportError as error:
        raise client.Unreachable(f"{http.base_url} went away while sending the log ({error})") from error


@app.command()
def metrics(
    job_id: JobId,
    names: Annotated[str | None, typer.Option(help="comma separated, as loss,learning_rate [all]")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="every point, as CSV")] = False,
    as_json: AsJson = False,
) -> None:
    """The last value and the range of every series."""
    params: dict[str, str] = {"names": names} if names else {}
    path = f"/jobs/{job_spec.job_id(job_id)}/metrics"
    if csv:
        answer = _connect().get(path, params={**params, "format": "csv"})
        client.raise_for_problem(answer)
        print(client.printable(answer.text), end="")
        return
    found = client.request(_connect(), "GET", path, params=params)
    _print_json(found) if as_json else output.metrics(found)


@app.command()
def events(job_id: JobId, as_json: AsJson = False) -> None:
    """What happened to a job, oldest first."""
    page = client.request(_connect(), "GET", f"/jobs/{job_spec.job_id(job_id)}/events", params={"limit": 1000})
    _print_json(page) if as_json else output.events(page)


@app.command()
def cancel(job_ids: JobIds, as_json: AsJson = False) -> None:
    """Ask jobs to stop for good."""
    _ask("cancel", job_ids, as_json=as_json)


@app.command()
def pause(job_ids: JobIds, as_json: AsJson = False) -> None:
    """Have jobs write a checkpoint and wait until they are resumed."""
    _ask("pause", job_ids, as_json=as_json)


@app.command()
def resume(job_ids: JobIds, as_json: AsJson = False) -> None:
    """Let paused jobs go on from their last checkpoint."""
    _ask("resume", job_ids, as_json=as_json)


@app.command()
def retry(job_ids: JobIds, as_json: AsJson = False) -> None:
    """Queue failed or cancelled jobs again, from their last checkpoint."""
    _ask("retry", job_ids, as_json=as_json)


@app.command()
def hosts(as_json: AsJson = False) -> None:
    """The machines, their devices, and who holds what."""
    page = client.request(_connect(), "GET", "/hosts")
    _print_json(page) if as_json else output.hosts(page)


@app.command()
def drain(names: HostNames, as_json: AsJson = False) -> None:
    """Start nothing new on these hosts; what runs there goes on to its end."""
    _change([f"/hosts/{job_spec.host_name(name)}/drain" for name in names], as_json=as_json)


@app.command()
def undrain(names: HostNames, as_json: AsJson = False) -> None:
    """Let new jobs start on these hosts again."""
    _change([f"/hosts/{job_spec.host_name(name)}/undrain" for name in names], as_json=as_json)


@app.command()
def cordon(name: HostName, devices: DeviceIndices, as_json: AsJson = False) -> None:
    """Give these devices of a host to no other job; what runs on them goes on to its end."""
    _change([f"/hosts/{job_spec.host_name(name)}/devices/{index}/cordon" for index in devices], as_json=as_json)


@app.command()
def uncordon(name: HostName, devices: DeviceIndices, as_json: AsJson = False) -> None:
    """Let new jobs have these devices again."""
    _change([f"/hosts/{job_spec.host_name(name)}/devices/{index}/uncordon" for index in devices], as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is wrong on this machine, why it matters, and the command that mends it; exit 1 where a job would fail."""
    argv = [sys.executable, "-P", "-m", "worker.doctor", *(["--json"] if as_json else [])]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """The named training configs a job can start from."""
    page = client.request(_connect(), "GET", "/presets")
    _print_json(page) if as_json else output.presets(page)


@app.command()
def convert(directory: Annotated[Path, typer.Argument(metavar="DIR", help="holds pytorch_model.bin")]) -> None:
    """Turn a model's old pickle into model.safetensors, here; no pickle is ever opened by the control plane."""
    raise typer.Exit(
        subprocess.run([sys.executable, "-P", "-m", "trainer.convert_weights", str(directory)], check=False).returncode
    )


@app.command()
def login() -> None:
    """A link that opens the dashboard once."""
    print(client.login_link(_connect()))


@app.command()
def token() -> None:
    """The token in use, for curl: -H "Authorization: Bearer $(longyard token)"."""
    print(_connect().headers["Authorization"].removeprefix("Bearer "))


def _connect() -> httpx.Client:
    return client.connect(data_dir=client.data_dir())


def _ask(verb: str, job_ids: list[str], *, as_json: bool) -> None:
    http = _connect()
    for job_id in job_ids:
        job = client.request(http, "POST", f"/jobs/{job_spec.job_id(job_id)}/{verb}")
        _print_json(job) if as_json else print(
            f"{job['id']}  {client.printable(job['status_reason'] or job['status'])}"
        )


def _change(paths: list[str], *, as_json: bool) -> None:
    """Each in turn; then the host as the last answer has it."""
    http = _connect()
    changed: dict[str, Any] = {}
    for path in paths:
        host = client.request(http, "POST", path)
        changed[host["name"]] = host
    page = {"data": list(changed.values())}
    _print_json(page) if as_json else output.hosts(page)


def _print_json(answer: Any) -> None:
    # ensure_ascii: nothing of others reaches the terminal as it is.
    print(json.dumps(answer, indent=2))
