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


_FORMS: Final = {
    schemas.LINE: ("has control characters in it", "leave them out"),
    schemas.TITLE: ("is blank or has control characters in it", "give a line of text"),
    schemas.LABEL: (
        "is no name for a label",
        "take letters, digits and . _ - /, a letter or digit first, at most 63 in all",
    ),
    schemas.LABELLED: ("is no label and value", "give it as key=value, as the job has it"),
    schemas.KEY: ("is no key", "give 1 to 255 printable ASCII characters without spaces"),
}
"""What is wrong with text of another form than asked for, and the way out."""
_OTHER_FORM: Final = ("is not of the form that is asked for", "keep to the one that GET /openapi.json gives")

MAX_ERRORS: Final = 20
MAX_NAME_CHARS: Final = 64
"""A sender's own words are repeated to them only so far: what an answer costs is bounded, whatever came."""


_FIX_SPEC: Final = "correct it; GET /schema lists every field with its bounds"


def of_request(errors: Sequence[Any], models: Mapping[str, type[BaseModel]]) -> list[schemas.FieldError]:
    """A request's first validation errors, `field` dotted from the body's root; `query.…` and `header.…` outside of it.

    `models`: what was expected as `body` and as `query`.
    """
    return [_field_error(error, _dotted(error["loc"]), error["loc"], models) for error in errors[:MAX_ERRORS]]


def of_train(errors: Sequence[ErrorDetails]) -> list[schemas.FieldError]:
    """The first errors of the training spec by itself, which stands under `train`."""
    located = [(error, ("body", "train", *error["loc"])) for error in errors[:MAX_ERRORS]]
    return [_field_error(error, _dotted(location), location, {"body": schemas.JobSpec}) for error, location in located]


def nearest(name: str, known: Sequence[str]) -> str | None:
    if len(name) > MAX_NAME_CHARS:
        return None
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def _dotted(location: tuple[int | str, ...]) -> str:
    place, *rest = location
    if place == "body":
        # A body that is no JSON is located by the character where it breaks.
        return ".".join(map(_short, rest)) if rest and not isinstance(rest[0], int) else "body"
    return ".".join((str(place), *(_short(_NAMES.get(str(part), part)) for part in rest)))


def _short(name: int | str) -> str:
    text = str(name)
    return text if len(text) <= MAX_NAME_CHARS else f"{text[:MAX_NAME_CHARS]}…"


def _field_error(
    error: Mapping[str, Any], field: str, location: Sequence[int | str], models: Mapping[str, type[BaseModel]]
) -> schemas.FieldError:
    kind: str = error["type"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind == "spec":
        message, fix = _told(str(context["message"]))
        return schemas.FieldError(field=field, code="inconsistent", message=message, fix=fix or _FIX_SPEC)
    if kind == "value_error":
        message, fix = _told(str(context.get("error", error["msg"])))
        return schemas.FieldError(field=field, code="invalid", message=message, fix=fix or _FIX_SPEC)
    code = _CODES.get(kind) or ("wrong_type" if kind.endswith(("_type", "_parsing", "_from_float")) else "invalid")
    return schemas.FieldError(
        field=field, code=code, message=_message(kind, error), fix=_fix(kind, context, location, models)
    )


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
    if kind == "string_pattern_mismatch":
        return _FORMS.get(error["ctx"]["pattern"], _OTHER_FORM)[0]
    text = str(error["msg"])
    return text[:1].lower() + text[1:]


def _fix(
    kind: str, context: Mapping[str, Any], location: Sequence[int | str], models: Mapping[str, type[BaseModel]]
) -> str:
    if kind == "missing":
        return "give it"
    if kind == "extra_forbidden":
        return _fix_unknown(location, models)
    for key, words in (("le", "at most"), ("ge", "at least"), ("lt", "less than"), ("gt", "more than")):
        if key in context:
            return f"give {words} {context[key]}"
    if "max_length" in context:
        return f"keep it within {context['max_length']}"
    if "min_length" in context:
        return f"give at least {context['min_length']}"
    if kind == "string_pattern_mismatch":
        return _FORMS.get(context["pattern"], _OTHER_FORM)[1]
    if "expected" in context:
        return f"give {context['expected']}"
    return next(
        (fix for start, fix in _TYPE_FIXES.items() if kind.startswith(start)), "change it as the schema at /schema says"
    )


def _fix_unknown(location: Sequence[int | str], models: Mapping[str, type[BaseModel]]) -> str:
    *parents, name = location
    known = _known_names(parents, models)
    close = nearest(str(name), known)
    if close:
        return f"did you mean {close}?"
    return (
        f"remove it; known are {', '.join(known)}"
        if 0 < len(known) <= 12
        else f"remove it; GET {'/schema' if parents[:2] == ['body', 'train'] else '/openapi.json'} lists what is known"
    )


def _known_names(parents: Sequence[int | str], models: Mapping[str, type[BaseModel]]) -> list[str]:
    model = models.get(str(parents[0])) if parents else None
    if model is None:
        return []
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
