"""The wire: what comes in (strict, no unknown fields) and what goes out (no defaults: what is not known yet is null)."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from store.states import AttemptStatus, DeviceState, ExitReason, HostStatus, Intent, JobStatus
from trainer.estimate.request import Estimate
from trainer.spec.config import DeviceType, TrainConfig

MAX_LABELS: Final = 64
MAX_DEVICES: Final = 8
YEAR_S: Final = 366 * 24 * 3600.0

LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
TITLE: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
LABELLED: Final = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^\x00-\x1f\x7f-\x9f]{0,256}$"
KEY: Final = r"^[\x21-\x7e]{1,255}$"

Line = Annotated[str, Field(pattern=LINE)]
"""Text of one line: what people name things by, and what they search for."""
Title = Annotated[str, Field(pattern=TITLE)]
"""Such a text that is not blank."""
Label = Annotated[str, Field(pattern=LABEL)]
"""What labels are called: what every database finds in a JSON object, and what stands before the `=` of a query."""


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


def _optional(field: FieldInfo) -> tuple[Any, FieldInfo]:
    """The field as an override: the preset's value where it is left out, so it has no default of its own to show."""
    override = copy.copy(field)
    override.default = None
    override.json_schema_extra = _drop_default
    return (field.annotation, override)


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


_FIELDS: dict[str, Any] = {name: _optional(field) for name, field in TrainConfig.model_fields.items()}
TrainOverrides: type[BaseModel] = create_model(
    "TrainOverrides",
    __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
    __doc__="What a job changes of its preset's training config; any of the fields, none of them required.",
    **_FIELDS,
)


class JobSpec(_In):
    """A preset and what differs from it."""

    preset: Line = Field(min_length=1, max_length=64, description="A name of GET /presets.")
    name: Title | None = Field(
        None, min_length=1, max_length=128, description="For people; the preset's name where it is left out."
    )
    train: TrainOverrides = Field(  # pyright: ignore[reportInvalidTypeForm]
        default_factory=TrainOverrides, description="Fields of the training config that differ from the preset's."
    )
    num_devices: int | None = Field(
        None, ge=1, le=MAX_DEVICES, description="Devices, all on one host; the preset's by default."
    )
    device_type: Literal["npu", "cuda", "cpu", "any"] | None = Field(
        None, description="The preset's by default; any: an accelerator where one is free, else CPU slots."
    )
    priority: int = Field(0, ge=-1000, le=1000, description="Greater goes first.")
    time_limit_s: float | None = Field(
        None,
        gt=0,
        le=10 * YEAR_S,
        description="How long it may have its devices, over all its attempts; null: for ever.",
    )
    labels: dict[Label, Annotated[Line, Field(max_length=256)]] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Names and values to find the job by."
    )


class Credentials(_In):
    """One of the two."""

    code: str | None = Field(None, min_length=1, max_length=256, description="From a one-time link.")
    token: str | None = Field(None, min_length=1, max_length=256)


class FieldError(_Out):
    field: str
    code: str
    message: str
    fix: str | None


class Problem(_Out):
    """RFC 9457, with a `code` for programs and the fields to blame."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError]
    request_id: str


class Progress(_Out):
    step: int | None
    total_steps: int | None
    fraction: float | None
    eta_s: float | None
    phase: str | None


class Wait(_Out):
    """`is_promised`: devices are kept for it, so that the estimate moves only with the jobs that hold them."""

    position: int | None
    reason: str
    estimated_start_at: datetime | None
    is_promised: bool


class Attempt(_Out):
    number: int
    host: str
    devices: list[int]
    device_type: str
    simulated: bool
    status: AttemptStatus
    exit_reason: ExitReason | None
    message: str | None
    failing_rank: int | None
    started_at: datetime | None
    finished_at: datetime | None


class Result(_Out):
    perplexity: float | None
    initial_perplexity: float | None
    fps: float | None
    fps_wall: float | None
    train_loss: float | None
    epochs: float | None
    torch_version: str | None
    output: str | None


class Job(_Out):
    id: str
    name: str
    status: JobStatus
    status_reason: str | None
    intent: Intent
    preset: str
    train: dict[str, Any]
    num_devices: int
    device_type: str
    priority: int
    labels: dict[str, str]
    owner: str
    time_limit_s: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Progress | None
    wait: Wait | None
    attempt: Attempt | None
    result: Result | None
    log_tail: list[str] | None
    cursor: int


class Spec(_Out):
    """A job's spec with its preset resolved: what a dry run would have stored."""

    name: str
    preset: str
    train: dict[str, Any]
    num_devices: int
    device_type: str
    priority: int
    time_limit_s: float | None
    labels: dict[str, str]


class Placement(_Out):
    host: str
    devices: list[int]


class DryRun(_Out):
    """Either `placement`, where it would start at once, or `wait`. `steps` is the estimate's."""

    spec: Spec
    placement: Placement | None
    wait: Wait | None
    steps: int | None
    estimate: Estimate


class Event(_Out):
    seq: int
    kind: str
    data: dict[str, Any]
    at: datetime


class Checkpoint(_Out):
    attempt: int
    step: int
    dir: str
    created_at: datetime


class Artifact(_Out):
    """`path` goes behind `/jobs/{id}/artifacts/`; `kind` is output, error, stack or plog: what an Ascend card's runtime logged."""

    path: str
    attempt: int
    kind: str
    bytes: int
    modified_at: datetime


class Preset(_Out):
    name: str
    title: str
    description: str
    num_devices: int
    device_type: DeviceType
    train: dict[str, Any]


class Device(_Out):
    """`utilization` is in percent. `unfit_reason`: why it is given to nobody, although it is free and not cordoned."""

    index: int
    name: str
    state: DeviceState
    cordoned: bool
    health: str | None
    temperature_c: float | None
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    unfit_reason: str | None
    job_id: str | None
    owner: str | None
    attempt: int | None


class Host(_Out):
    """`drained_at`: since when somebody wants nothing new to start there."""

    name: str
    status: HostStatus
    drained_at: datetime | None
    device_type: str
    simulated: bool
    devices: list[Device]
    versions: dict[str, str]
    last_seen_at: datetime


MetricPoint = tuple[int, float, datetime] | tuple[int, None, datetime, Literal["nan", "inf", "-inf"]]


class Series(_Out):
    name: str
    attempt: int
    points: list[MetricPoint]
    min: float | None
    max: float | None


class Metrics(_Out):
    series: list[Series]
    truncated: bool
    cursor: int


class JobPage(_Out):
    data: list[Job]
    has_more: bool
    next: str | None


class EventPage(_Out):
    data: list[Event]
    has_more: bool
    next: str | None


class Attempts(_Out):
    data: list[Attempt]


class Checkpoints(_Out):
    data: list[Checkpoint]


class Artifacts(_Out):
    data: list[Artifact]


class Presets(_Out):
    data: list[Preset]


class Hosts(_Out):
    data: list[Host]


class LoginCode(_Out):
    code: str
    expires_at: datetime
    path: str


class Health(_Out):
    status: Literal["ok"]


class MetricsMessage(_Out):
    """The data of a stream's `metrics` event: new points by name."""

    attempt: int
    series: dict[str, list[MetricPoint]]


class LogMessage(_Out):
    """The data of a stream's `log` event: a decoded byte range of one rank's raw log."""

    attempt: int
    rank: int
    offset: int
    end: int
    text: str
