"""Owns the body of POST /jobs as a user writes it: a file, a preset, and KEY=VALUE laid over both."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

TOP_FIELDS = frozenset({"name", "preset", "num_devices", "device_type", "priority", "time_limit_s"})
FILE_FIELDS = frozenset({"train_file", "validation_file", "tokenizer_name", "model_name_or_path"})


class SpecError(Exception):
    """What the user wrote cannot be made into a request."""


def build(file: Path | None, *, preset: str | None, name: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """The request's body. Raises SpecError. What the values mean is the server's to judge."""
    body = _read(file) if file is not None else {}
    if preset is not None:
        body["preset"] = preset
    if name is not None:
        body["name"] = name
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise SpecError(f"-s {setting}: write KEY=VALUE, as in -s num_devices=2")
        _put(body, key, _value(text))
    if not body:
        raise SpecError("nothing to submit: name a spec file or a --preset")
    return body


def job_id(text: str) -> str:
    """A job's id as it may stand in a path. Raises SpecError: a stray slash would ask for something else."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) or text.strip(".") == "":
        raise SpecError(f"{text!r} is no job id; `longyard jobs` lists them")
    return text


def host_name(text: str) -> str:
    """A host's name, quoted for a path. Raises SpecError."""
    if text.strip(".") == "":
        raise SpecError(f"{text!r} is no host; `longyard hosts` lists them")
    return quote(text, safe="")


def _read(file: Path) -> dict[str, Any]:
    try:
        body: Any = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{file} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise SpecError(f"{file}: a spec is a JSON object")
    return cast(dict[str, Any], body)


def _put(body: dict[str, Any], key: str, value: Any) -> None:
    """`labels.team` and `train.learning_rate` name their place; a bare name that is no field of the job is one of training."""
    parts = key.split(".")
    if len(parts) == 1 and key not in TOP_FIELDS:
        parts = ["train", key]
    if parts[0] == "labels":
        value = value if isinstance(value, str) else json.dumps(value)
    if parts[-1] in FILE_FIELDS and isinstance(value, str) and Path(value).exists():
        value = str(Path(value).resolve())
    place = body
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise SpecError(f"-s {key}: {part} is not an object")
        place = cast(dict[str, Any], inner)
    place[parts[-1]] = value


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: 2, 1e-4, true, null, {"a": 1}, plain words."""
    try:
        return json.loads(text)
    except ValueError:
        return text
