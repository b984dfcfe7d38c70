"""Every environment variable Longyard reads, once. torch.distributed's own are read by `trainer/device.py`."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from store.errors import BadSettings

MAX_UNIX_PATH_BYTES = 107


class Settings(BaseSettings):
    """`LONGYARD_<FIELD>` in the environment; `longyard up` takes the commoner ones as options."""

    model_config = SettingsConfigDict(env_prefix="LONGYARD_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path(".longyard"), description="database, broker socket, token, jobs, `url`")
    host: str = Field(default="127.0.0.1", description="the address the API listens on")
    port: int = Field(default=8642, ge=0, le=65535, description="the API's port; 0 takes any free one")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="further names, comma separated, that clients may call this API by"
    )
    database_url: str = Field(default="", description="postgresql+psycopg://… ; empty: SQLite in the data directory")
    redis_url: str = Field(default="", description="redis:// or unix:// ; empty: the embedded server's socket")
    host_name: str = Field(
        default_factory=socket.gethostname, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$"
    )
    devices: str = Field(
        default="auto",
        pattern=r"^(auto|npu|cuda|(cpu|cuda|npu|npu-sim):[1-9][0-9]?)$",
        description="what this host advertises: auto, npu, cuda, or so many of them: cpu:4, npu:8, npu-sim:8",
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="directories, separated by `:`, that specs may name files in"
    )
    quotas: Annotated[dict[str, Annotated[int, Field(ge=0)]], NoDecode] = Field(
        default_factory=dict, description="devices an owner may hold at once: ada=16,*=8, * for all that are not named"
    )
    weights: Annotated[dict[str, Annotated[float, Field(gt=0)]], NoDecode] = Field(
        default_factory=dict, description="an owner's part when devices are scarce: ada=2,*=1"
    )
    allow_network: bool = Field(default=False, description="let trainers fetch models by hub name")
    trainer_module: str = Field(
        default="trainer", pattern=r"^[A-Za-z_][\w.]*$", description="python -m <this> is a rank"
    )
    cgroups: bool = Field(default=True, description="a control group for each attempt, where the kernel lets us")
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")

    heartbeat_s: float = Field(default=5.0, gt=0)
    lease_s: float = Field(default=60.0, gt=0)
    stop_grace_s: float = Field(default=30.0, gt=0, description="SIGTERM to SIGKILL when a stop was asked for")
    sibling_grace_s: float = Field(default=5.0, gt=0, description="what is left to the others once a rank has died")
    quarantine_s: float = Field(default=30.0, gt=0, description="first SIGKILL to giving up its devices")
    retry_s: float = Field(default=10.0, gt=0, description="the wait before a retry; each further one is twice as long")
    hang_s: float = Field(
        default=60.0, gt=0, description="a rank whose step stands still for longer, and for ten steps' time, hangs"
    )
    startup_limit_s: float = Field(default=3600.0, gt=0, description="launch to the second step, without any progress")
    evaluate_limit_s: float = Field(default=3600.0, gt=0, description="one evaluation, without any progress")
    save_limit_s: float = Field(default=1800.0, gt=0, description="one checkpoint or the output, without any progress")
    host_loop_s: float = Field(default=5.0, gt=0)
    cards_s: float = Field(default=15.0, gt=0, description="between two looks at this host's cards")
    checkup_s: float = Field(default=60.0, gt=0, description="between two rounds of the doctor's checks on this host")
    shutdown_grace_s: float = Field(default=5.0, gt=0, description="what open streams get when the API stops")
    max_log_bytes: int = Field(default=1 << 30, gt=0, description="kept of one attempt's logs")

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("quotas", "weights", mode="before")
    @classmethod
    def _split_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ValueError("owner=number, separated by commas")
        return {name.strip(): number.strip() for name, _, number in pairs}

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("data_roots")
    @classmethod
    def _absolute_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in value)

    @cached_property
    def db_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'longyard.db'}"

    @cached_property
    def is_local(self) -> bool:
        """Whether the database is the SQLite file in the data directory: who uses it shares this machine's kernel, and its locks."""
        return self.db_url == f"sqlite:///{self.data_dir / 'longyard.db'}"

    @cached_property
    def broker_url(self) -> str:
        """In redis-py's form; `store/celery_app.py` alone rewrites it for kombu."""
        return self.redis_url or f"unix://{self.broker_socket}"

    @cached_property
    def broker_socket(self) -> Path:
        """In the data directory, or in a private one under /tmp where that path is too long for a unix socket."""
        socket_path = self.data_dir / "valkey.sock"
        if len(bytes(socket_path)) <= MAX_UNIX_PATH_BYTES:
            return socket_path
        digest = hashlib.sha256(bytes(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"longyard-{os.getuid()}-{digest}" / "valkey.sock"

    @property
    def token_file(self) -> Path:
        return self.data_dir / "token"

    @property
    def url_file(self) -> Path:
        return self.data_dir / "url"

    @property
    def host_dir(self) -> Path:
        """This host's own locks and logs."""
        return self.data_dir / "hosts" / self.host_name

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir / "jobs"

    @property
    def token_cache_dir(self) -> Path:
        """Tokenized corpora, by content: what one job has built every later one on this host maps."""
        return self.data_dir / "cache" / "tokens"

    def run_dir(self, job_id: str, attempt_number: int) -> Path:
        """Where one attempt's files are; the ids come from us, never from a user."""
        return self.jobs_dir / job_id / f"a{attempt_number}"


def load() -> Settings:
    """The environment's settings. Raises BadSettings, a line a variable."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [_sentence(detail) for detail in error.errors(include_url=False)]
        raise BadSettings("\n".join(lines)) from None


def _sentence(detail: ErrorDetails) -> str:
    name = "LONGYARD_" + str(detail["loc"][0]).upper()
    described = Settings.model_fields[str(detail["loc"][0])].description
    value = "".join(f"{key}=" for key in detail["loc"][1:] if isinstance(key, str)) + str(detail["input"])
    return f"{name}={value}: {detail['msg'].lower()}" + (f" ({described})" if described else "")
