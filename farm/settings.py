"""Settings: what a process is told by its environment.

Read only where a process is put together; everything else is given what it needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_dir
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from farm.errors import InvalidInput, SetupError
from farm.spec.output import PNG, Output
from farm.spec.tags import MAX_TAGS, Tag

_PREFIX = "FARM_"
_SECRET = ("api_key", "database_url", "broker_url")
_SETUP_HINTS = {
    "database_url": "postgresql://user:password@host/farm",
    "broker_url": "redis://host:6379/0",
}


class Settings(BaseSettings):
    """Every setting is an environment variable: ``FARM_`` and the name in capitals.

    Attributes:
        home: folder of the one-machine farm: databases, images, logs, models.
        database_url: Postgres, ``postgresql://...``; None: not told.
        broker_url: Redis or Valkey, ``redis://...`` or ``redis+socket:///path``; None: not told.
        storage_url: where images go: a folder, or any fsspec URL such as ``s3://bucket/prefix``.
        models: folders with checkpoints, separated like ``PATH``.
        host, port: where the API listens.
        worker_name: what a worker is called, such as ``gpu0``; unique on its host.
        device: what a worker holds: ``cpu``, or the UUID of its GPU.
        tags: of a worker, separated by commas; a batch may ask for workers that have some.
        profile: a worker's memory profile by name, or the path of a YAML file with one; ``auto``
            chooses by the device.
        host_cache_gb: host memory in which a worker keeps checkpoints that left its GPU or will be
            needed next; by default its part of 40 % of the host's memory, and nothing for a CPU
            worker.
        scan_seconds: how often a worker looks for new model files.
        lease_seconds: without a heartbeat for so long, a worker has lost its jobs.
        hang_seconds: a step on the device that takes longer, and ten times as long as any before,
            ends the worker's process.
        drain_seconds: how long a worker that is told to stop may finish what it runs.
        output: the file format of images where a batch names none, such as ``webp 90``.
        keep_days: after so many days a batch that has ended goes, with its images; by default it
            stays for ever.
        keep_attempts_days: for so long the history of jobs is kept: workers, timings, errors of
            each attempt.
        quota_jobs: most jobs of a user that may wait to be begun, unless an administrator said
            otherwise.
        streams: event streams that an API process has open at once.
        streams_each: of these, by one user or, without a key, from one address.
        local: a farm for the one person at this machine, who needs no key.
        url: the API, for clients; by default the one on this machine.
        api_key: the key clients send.
        log_level, log_json: how much is logged, and whether as one JSON object a line.

    Raises:
        InvalidInput: a variable has a value that cannot be used; names both.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    home: Path = Field(default_factory=lambda: Path(user_data_dir("farm")))
    database_url: str | None = None
    broker_url: str | None = None
    storage_url: str = Field(default_factory=lambda told: str(told["home"] / "images"))
    models: Annotated[list[Path], NoDecode] = Field(
        default_factory=lambda told: [told["home"] / "models"]
    )
    host: str = "127.0.0.1"
    port: int = Field(default=7900, ge=1, le=65535)
    quota_jobs: int = Field(default=20_000_000, ge=0, le=2**53)
    streams: int = Field(default=256, ge=1, le=100_000)
    streams_each: int = Field(default=32, ge=1, le=100_000)
    local: bool = False
    worker_name: str = Field(default="cpu0", min_length=1, max_length=100)
    device: str = "cpu"
    tags: Annotated[list[Tag], NoDecode] = Field(default=[], max_length=MAX_TAGS)
    profile: str = "auto"
    host_cache_gb: float | None = Field(default=None, ge=0)
    scan_seconds: float = Field(default=15.0, gt=0, le=3600)
    lease_seconds: float = Field(default=15.0, ge=3, le=3600)
    hang_seconds: float = Field(default=300.0, ge=1, le=86400)
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    output: Annotated[Output, NoDecode] = PNG
    keep_days: float | None = Field(default=None, ge=1, le=36500)
    keep_attempts_days: float = Field(default=90.0, ge=1, le=36500)
    url: str = Field(default_factory=lambda told: address(told["host"], told["port"]))
    api_key: str | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_json: bool = False

    def __init__(self, **told: Any) -> None:
        try:
            super().__init__(**told)
        except ValidationError as error:
            raise _explained(error) from None

    def required(self, name: str) -> str:
        """The value of a setting this process cannot do without.

        Raises:
            SetupError: it is not set; says what to set it to.
        """
        value = getattr(self, name)
        if value is None:
            hint = _SETUP_HINTS.get(name, "its value")
            raise SetupError(
                f"{_PREFIX}{name.upper()} is not set.",
                field=f"{_PREFIX}{name.upper()}",
                remedy=f"Set it, for example to {hint}, or let `farm up` start everything.",
            )
        return str(value)

    @field_validator("home")
    @classmethod
    def _whole_path(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("tags", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return sorted({tag.strip() for tag in value.split(",") if tag.strip()})

    @field_validator("models")
    @classmethod
    def _whole_paths(cls, paths: list[Path]) -> list[Path]:
        return [path.expanduser().absolute() for path in paths]

    @field_validator("log_level", mode="before")
    @classmethod
    def _capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, url: str | None) -> str | None:
        return _with_scheme(url, "postgresql://", "postgres://")

    @field_validator("broker_url")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        return _with_scheme(url, "redis://", "rediss://", "redis+socket://")

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        _with_scheme(url, "http://", "https://")
        return url.rstrip("/")


def address(host: str, port: int) -> str:
    """The URL at which this machine reaches what listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _with_scheme(url: str | None, *schemes: str) -> str | None:
    if url is not None and not url.startswith(schemes):
        raise ValueError(f"it must start with {' or '.join(schemes)}")
    return url


def _explained(error: ValidationError) -> InvalidInput:
    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = _PREFIX + name.upper()
    reason = first["msg"].removeprefix("Value error, ")
    value = "..." if name in _SECRET else str(first["input"])
    return InvalidInput(
        f"{variable}={value}: {reason[0].lower()}{reason[1:]}.",
        field=variable,
        value=value,
        remedy=f"Correct the environment variable {variable}, or unset it for the default.",
    )
