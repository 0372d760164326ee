"""Memory profiles of one's own, from a YAML file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.errors import InvalidInput
from farm.worker.memory.profiles import GIB, MemoryProfile, by_name

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 64_000

Precision = Literal["float16", "bfloat16", "float32"]


class _File(BaseModel):
    """What the file may say; all but ``base`` has the base's value where it is left out."""

    model_config = ConfigDict(extra="forbid")

    base: str
    dtype: Precision | None = None
    vae_dtype: Literal["auto", "float16", "bfloat16", "float32"] | None = None
    memory_gb: float | None = Field(default=None, gt=0.5, le=1024)
    weights_gb: float | None = Field(default=None, gt=0, le=1024)
    rows_at_1024: int | None = Field(default=None, ge=1, le=1024)
    max_rows: int | None = Field(default=None, ge=1, le=1024)
    vae: Literal["full", "taesd"] | None = None
    vae_tile_over: int | None = Field(default=None, ge=512, le=16384)
    vae_tile: int | None = Field(default=None, ge=256, le=2048, multiple_of=64)
    offload: Literal["none", "model", "streamed"] | None = None
    attention: Literal["sdpa", "xformers", "sub-quadratic", "sliced"] | None = None
    channels_last: bool | None = None
    fp16_accumulation: bool | None = None
    cuda_graphs: bool | None = None
    compile: Literal["none", "regional"] | None = None
    slots: int | None = Field(default=None, ge=1, le=256)
    lookahead: int | None = Field(default=None, ge=0, le=256)


def is_file(name: str) -> bool:
    """Whether a profile's name is the path of a file."""
    return name.endswith(SUFFIXES)


def read_profile(path: Path) -> MemoryProfile:
    """The profile in a YAML file, called as the file without its suffix.

    Raises:
        InvalidInput: there is no such file, or something in it is wrong; names the key.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _wrong(path, "is too large for a profile")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        told = _File.model_validate(content)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(path, "is not YAML") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise _wrong(path, f"has a wrong {key}: {first['msg']}", key) from error
    profile = _built(path.stem, told)
    if profile.weights_bytes >= profile.memory_bytes:
        raise _wrong(path, "leaves nothing of memory_gb beside weights_gb", "weights_gb")
    return profile


def _built(name: str, told: _File) -> MemoryProfile:
    base = by_name(told.base)
    given = told.model_dump(exclude_none=True)
    otherwise = {"base", "memory_gb", "weights_gb", "vae_tile_over"}
    changes: dict[str, Any] = {key: given[key] for key in given if key not in otherwise}
    if told.memory_gb:
        share = base.weights_bytes / base.memory_bytes
        changes["memory_bytes"] = int(told.memory_gb * GIB)
        changes["weights_bytes"] = int(told.memory_gb * GIB * share)
    if told.weights_gb:
        changes["weights_bytes"] = int(told.weights_gb * GIB)
    if told.max_rows:
        smaller = (bucket for bucket in base.buckets if bucket < told.max_rows)
        changes["buckets"] = (*smaller, told.max_rows)
    if told.vae_tile_over:
        changes["vae_tile_over"] = told.vae_tile_over**2
    return replace(base, name=name, **changes)


def _wrong(path: Path, what: str, key: str | None = None) -> InvalidInput:
    return InvalidInput(
        f"The memory profile {path} {what}.",
        field=key or "FARM_PROFILE",
        value=str(path),
        remedy="docs/memory-profiles.md says what it may hold.",
    )
