"""The checkpoints found in the model folders, good and broken ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckpointFile:
    """One checkpoint on disk.

    Attributes:
        name: as people choose it: the path in its model folder, without suffix, with ``/``.
        path: the ``.safetensors`` file, or the diffusers folder.
        family: ``sd15`` or ``sdxl``; None where it could not be told.
        native_side: pixels of the side it was trained at; None where unknown.
        bytes: size on disk.
        error: why it cannot be used, or None.
        defaults: ``width``, ``height``, ``steps``, ``cfg_scale`` and perhaps ``sampler``, for
            what a batch leaves out.
    """

    name: str
    path: Path
    family: str | None
    native_side: int | None
    bytes: int
    error: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


def builtin_folder() -> Path:
    """The model folder that ships with Farm; it holds the checkpoint ``demo``."""
    raise NotImplementedError


def scan(folders: Sequence[Path]) -> list[CheckpointFile]:
    """Every checkpoint under ``folders``, sorted by name. Broken ones carry their ``error``.

    Of two with one name the first folder's is used; the other is listed with an error.
    """
    raise NotImplementedError
