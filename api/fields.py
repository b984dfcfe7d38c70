"""Which field of a request is wrong, why, and the way out: pydantic's errors in our words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from api import schemas

_NAMES: Final = {
    "idempotency-key": "Idempotency-Key",
    "if-none-match": "If-None-Match",
    "last-event-id": "Last-Event-ID",
}

_CODES: Final = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "json_invalid": "unreadable",
    "literal_error": "not_a_choice",
    "enum": "not_a_choice",
    "string_too_long": "too_long",
    "too_long": "too_long",
    "string_too_short": "too_short",
    "less_than": "too_large",
    "less_than_equal": "too_large",
    "greater_than": "too_small",
    "greater_than_equal": "too_small",
    "spec": "inconsistent",
}

_TYPE_FIXES: Final = {
    "int": "give a whole number",
    "float": "give a number",
    "finite_number": "give a finite number",
    "bool": "give true or false",
    "string": "give a string",
    "dict": "give an object",
    "model": "give an object",
    "list": "give a list",
}


_FIX_SPEC: Final = "correct it; GET /schema lists every field with its bounds"


def of_request(errors: Sequence[Any]) -> list[schemas.FieldError]:
    """A request's validation errors, `field` dotted from the body's root; `query.…` and `header.…` outside of it."""
    return [_field_error(error, _dotted(error["loc"]), error["loc"]) for error in errors]


def of_train(errors: Sequence[ErrorDetails]) -> list[schemas.FieldError]:
    """Errors of the training spec by itself, which stands under `train`."""
    return [
        _field_error(error, ".".join(("train", *map(str, error["loc"]))), ("body", "train", *error["loc"]))
        for error in errors
    ]


def nearest(name: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def _dotted(location: tuple[int | str, ...]) -> str:
    place, *rest = location
    if place == "body":
        # A body that is no JSON is located by the character where it breaks.
        return ".".join(map(str, rest)) if rest and not isinstance(rest[0], int) else "body"
    return ".".join(map(str, (place, *(_NAMES.get(str(part), part) for part in rest))))


def _field_error(error: Mapping[str, Any], field: str, location: Sequence[int | str]) -> schemas.FieldError:
    kind: str = error["type"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind == "spec":
        message, fix = _told(str(context["message"]))
        return schemas.FieldError(field=field, code="inconsistent", message=message, fix=fix or _FIX_SPEC)
    if kind == "value_error":
        message, fix = _told(str(context.get("error", error["msg"])))
        return schemas.FieldError(field=field, code="invalid", message=message, fix=fix or _FIX_SPEC)
    code = _CODES.get(kind) or ("wrong_type" if kind.endswith(("_type", "_parsing", "_from_float")) else "invalid")
    return schemas.FieldError(field=field, code=code, message=_message(kind, error), fix=_fix(kind, context, location))


def _told(text: str) -> tuple[str, str]:
    """A sentence of the spec's own checks as message and way out: `what; fix`, or `is missing: fix`."""
    message, mark, fix = text.partition("; ")
    return (message, fix) if mark else (text.partition(": ")[0], text.partition(": ")[2])


def _message(kind: str, error: Mapping[str, Any]) -> str:
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a field that is known here"
    if kind == "json_invalid":
        return f"is not JSON: {(error.get('ctx') or {}).get('error', 'unreadable')} at character {error['loc'][-1]}"
    text = str(error["msg"])
    return text[:1].lower() + text[1:]


def _fix(kind: str, context: Mapping[str, Any], location: Sequence[int | str]) -> str:
    if kind == "missing":
        return "give it"
    if kind == "extra_forbidden":
        return _fix_unknown(location)
    for key, words in (("le", "at most"), ("ge", "at least"), ("lt", "less than"), ("gt", "more than")):
        if key in context:
            return f"give {words} {context[key]}"
    if "max_length" in context:
        return f"keep it within {context['max_length']}"
    if "min_length" in context:
        return f"give at least {context['min_length']}"
    if kind == "string_pattern_mismatch":
        return "leave out control characters, and keep to the form that GET /openapi.json gives for it"
    if "expected" in context:
        return f"give {context['expected']}"
    return next(
        (fix for start, fix in _TYPE_FIXES.items() if kind.startswith(start)), "change it as the schema at /schema says"
    )


def _fix_unknown(location: Sequence[int | str]) -> str:
    *parents, name = location
    known = _known_names(parents)
    close = nearest(str(name), known)
    if close:
        return f"did you mean {close}?"
    return (
        f"remove it; known are {', '.join(known)}"
        if 0 < len(known) <= 12
        else "remove it; GET /schema lists what is known"
    )


def _known_names(parents: Sequence[int | str]) -> list[str]:
    if not parents or parents[0] != "body":
        return []
    model: type[BaseModel] = schemas.JobSpec
    for part in parents[1:]:
        found = model.model_fields.get(str(part))
        nested = next((one for one in _models_in(found.annotation) if found), None) if found else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
