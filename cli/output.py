"""Owns how answers of the API look in a terminal. Every text of others passes client.printable; none is read as markup."""

import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Json, Problem, colored, printable

_ESTIMATED = {
    "parameters": "parameters",
    "sequences": "sequences in train_file",
    "rows": "rows of them",
    "global_batch": "rows a step",
    "steps": "steps",
    "tokens": "tokens",
    "slots": "tokens with padding",
    "checkpoint_bytes": "a checkpoint",
    "checkpoints_bytes": "checkpoints at most",
    "memory_bytes": "memory a device",
}
_STATUS_STYLE = {"running": "cyan", "succeeded": "green", "failed": "red", "online": "green", "lost": "red"}


def jobs(page: Json) -> None:
    """One line a job. A queued one shows its place and when it may start where others show how far they are."""
    rows = [
        [job["id"], job["name"], job["status"], _progress(job), _where(job), job["status_reason"] or ""]
        for job in page["data"]
    ]
    _table(["id", "name", "status", "progress", "where", "reason"], rows)
    if page["has_more"]:
        print("there are more; raise --limit", file=sys.stderr)


def job(job: Json) -> None:
    """Everything of one job that fits a screen."""
    attempt, result = job["attempt"] or {}, job["result"] or {}
    rows: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("name", job["name"]),
        ("status", job["status"]),
        ("reason", job["status_reason"]),
        ("position", (job["wait"] or {}).get("position")),
        ("starts", _start(job["wait"], with_doubt=True)),
        ("preset", job["preset"]),
        ("devices", f"{job['num_devices']} × {job['device_type']}"),
        ("progress", _progress(job)),
        ("where", _where(job)),
        ("created", job["created_at"]),
        ("started", job["started_at"]),
        ("finished", job["finished_at"]),
        ("attempt", attempt.get("number")),
        ("exit reason", attempt.get("exit_reason")),
        ("message", attempt.get("message")),
        ("failing rank", attempt.get("failing_rank")),
        *((name.replace("_", " "), value) for name, value in result.items()),
        *((f"label {name}", value) for name, value in job["labels"].items()),
    ]
    _pairs([(name, value) for name, value in rows if value not in (None, "")])
    _log_tail(job)


def dry_run(answer: Json) -> None:
    """Where a job would run, and what it would take. `about` marks what was not counted; why not stands below."""
    placement, wait, estimate = answer["placement"], answer["wait"], answer["estimate"]
    rows: list[tuple[str, Any]] = []
    if placement:
        rows.append(("would start at once on", f"{placement['host']} {placement['devices']}"))
    if wait:
        rows.append(("would wait", wait["reason"]))
        rows.append(("estimated start", wait["estimated_start_at"] or "not known"))
    rows += [(name, _figure(estimate[key], in_bytes=key.endswith("_bytes"))) for key, name in _ESTIMATED.items()]
    parts: Json = estimate["memory_parts"] or {}
    rows += [(f"  {name}", f"up to {_in_bytes(value)}") for name, value in parts.items()]
    _pairs(rows)
    reasons: dict[str, list[str]] = {}
    for key, name in _ESTIMATED.items():
        if estimate[key]["why"]:
            reasons.setdefault(estimate[key]["why"], []).append(name)
    for why, names in reasons.items():
        print(f"{', '.join(names)}: {printable(why)}")


def outcome(job: Json) -> None:
    """How a followed job ended: the figures and where the weights are, or why not."""
    result = job["result"]
    if job["status"] == "succeeded" and result:
        before, after = result.get("initial_perplexity"), result["perplexity"]
        rows: list[tuple[str, Any]] = [
            ("perplexity before", number(before)),
            ("perplexity after", number(after)),
            ("fps", f"{number(result['fps'])} samples/s; by the wall clock {number(result['fps_wall'])}"),
            ("train loss", number(result["train_loss"])),
            ("epochs", number(result["epochs"])),
            ("weights", f"{result['output']}/model.safetensors"),
        ]
        _pairs(rows)
        return
    why = (job["attempt"] or {}).get("message") or job["status_reason"]
    # Of a job that somebody cancelled, the reason is the same word.
    print(f"{job['status']}: {printable(str(why))}" if why and why != job["status"] else job["status"])
    _log_tail(job)


def metrics(found: Json) -> None:
    """Last value and range of every series."""
    rows: list[list[Any]] = []
    for series in found["series"]:
        last = series["points"][-1] if series["points"] else [None, None]
        value = last[3] if len(last) > 3 and last[1] is None else number(last[1])
        rows.append([series["name"], series["attempt"], last[0], value, number(series["min"]), number(series["max"])])
    _table(["metric", "attempt", "step", "last", "min", "max"], rows)


def events(page: Json) -> None:
    """A job's history."""
    rows = [
        [event["seq"], event["at"], event["kind"], ", ".join(f"{key}={value}" for key, value in event["data"].items())]
        for event in page["data"]
    ]
    _table(["seq", "at", "event", "data"], rows)


def hosts(page: Json) -> None:
    """A line a device, then each host's versions."""
    rows = [
        [host["name"], host["status"], _kind(host), device["index"], _state(device), *_holder(device)]
        for host in page["data"]
        for device in host["devices"]
    ]
    _table(["host", "status", "type", "device", "state", "job", "owner"], rows)
    for host in page["data"]:
        versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
        print(f"{printable(host['name'])}: {printable(versions)}; last seen {printable(host['last_seen_at'])}")


def _kind(host: Json) -> str:
    return f"{host['device_type']} (simulated)" if host.get("simulated") else str(host["device_type"])


def presets(page: Json) -> None:
    """A line a preset."""
    rows = [[p["name"], f"{p['num_devices']} × {p['device_type']}", p["description"]] for p in page["data"]]
    _table(["preset", "devices", "what it is"], rows)


def problem(refusal: Problem) -> None:
    """A refusal on stderr: each field with the way out, else the one sentence."""
    body = refusal.body
    errors: list[Json] = body.get("errors") or []
    print(
        f"longyard: refused ({refusal.status} {printable(str(body.get('code') or body.get('title') or ''))})",
        file=sys.stderr,
    )
    if not errors:
        print(f"  {printable(str(refusal))}", file=sys.stderr)
    for error in errors:
        print(f"  {printable(str(error.get('field')))}: {printable(str(error.get('message')))}", file=sys.stderr)
        if error.get("fix"):
            print(f"    {printable(str(error['fix']))}", file=sys.stderr)
    if refusal.status >= 500 and body.get("request_id"):
        print(f"  request {printable(str(body['request_id']))}", file=sys.stderr)


def number(value: float | None) -> str:
    """A figure at four digits; what is not known is a dash."""
    if value is None:
        return "–"
    if not math.isfinite(value) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _progress(job: Json) -> str:
    progress, wait = job["progress"], job["wait"]
    if wait and wait["position"] is not None:
        return ", ".join(part for part in (f"#{wait['position']}", _start(wait)) if part)
    if not progress:
        return ""
    total = progress.get("total_steps")
    return f"{progress['step']}/{total}" if total else str(progress["step"])


def _where(job: Json) -> str:
    attempt = job["attempt"]
    if not attempt or not attempt.get("host"):
        return ""
    where = f"{attempt['host']} [{', '.join(str(index) for index in attempt['devices'])}]"
    return f"{where} (simulated)" if attempt.get("simulated") else where


def _start(wait: Json | None, *, with_doubt: bool = False) -> str:
    """`in about 40 min`; where devices are kept for it, that is until when; else it may well take twice as long, or half."""
    if not wait or not wait["estimated_start_at"]:
        return ""
    left = datetime.fromisoformat(wait["estimated_start_at"]) - datetime.now(UTC)
    when = f"in about {_minutes(left.total_seconds() / 60)}"
    if not with_doubt:
        return when
    doubt = "devices are kept for it; later only if what runs there takes longer than it says"
    return f"{when} ({doubt if wait['is_promised'] else 'rough, easily off by a factor of two'})"


def _minutes(minutes: float) -> str:
    if minutes < 90:
        return f"{max(1, math.ceil(minutes))} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def _state(device: Json) -> str:
    return f"{device['state']}, cordoned" if device["cordoned"] else str(device["state"])


def _holder(device: Json) -> tuple[str, str]:
    return (device["job_id"], device["owner"] or "") if device["job_id"] else ("", "")


def _figure(figure: Json, *, in_bytes: bool) -> str:
    if figure["value"] is None:
        return "unknown"
    text = _in_bytes(figure["value"]) if in_bytes else f"{figure['value']:,}"
    return text if figure["sure"] == "exact" else f"about {text}"


def _in_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _log_tail(job: Json) -> None:
    if job.get("log_tail"):
        print("last lines of its log:")
        for line in job["log_tail"]:
            print(f"  {colored(line)}")


def _pairs(rows: Sequence[tuple[str, Any]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {printable(str(value))}")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(head):
        # The first column is what people copy.
        table.add_column(name, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(printable(str(cell)), style=_STATUS_STYLE.get(str(cell), "")) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a pipe has no width to fold at
    console.print(table)
