"""The checkpoints found in the model folders, good and broken ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import farm
from farm.errors import CheckpointError
from farm.worker.models.architecture import MODEL_INDEX, recognise, recognise_folder
from farm.worker.models.defaults import defaults, native_side
from farm.worker.models.header import PICKLE_SUFFIXES, damaged, read_header

SUFFIX = ".safetensors"
CONFIG_SUFFIX = ".config"
BUNDLES = Path(__file__).parent / "bundles"


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
    return Path(farm.__file__).parent / "data" / "demo"


def config_folder(path: Path, family: str) -> Path:
    """The configs of a single file: ``<stem>.config/`` beside it, else those of its family."""
    own = path.with_suffix(CONFIG_SUFFIX)
    return own if own.is_dir() else BUNDLES / family


def scan(folders: Sequence[Path]) -> list[CheckpointFile]:
    """Every checkpoint under ``folders``, sorted by name. Broken ones carry their ``error``.

    Of two with one name the first folder's is used; the other is listed with an error.
    """
    found: dict[str, CheckpointFile] = {}
    shadowed: list[CheckpointFile] = []
    for folder in folders:
        for path in _paths(folder):
            file = _examine(folder, path)
            first = found.setdefault(file.name, file)
            if first is not file:
                error = f"{file.name!r} is already the name of {first.path}. Rename one."
                shadowed.append(replace(file, error=error))
    return sorted([*found.values(), *shadowed], key=lambda file: (file.name, file.path))


def _paths(folder: Path) -> Iterator[Path]:
    """Files and diffusers folders that are, or pretend to be, checkpoints."""
    for place, inner, names in os.walk(folder):
        here = Path(place)
        if MODEL_INDEX in names:
            inner.clear()
            yield here
            continue
        yield from (here / name for name in sorted(inner) if _leaves(folder, here / name))
        inner[:] = sorted(name for name in inner if not name.endswith(CONFIG_SUFFIX))
        for name in sorted(names):
            if Path(name).suffix.lower() in {SUFFIX, *PICKLE_SUFFIXES}:
                yield here / name


def _examine(folder: Path, path: Path) -> CheckpointFile:
    shown = path.relative_to(folder) if path != folder else Path(folder.resolve().name)
    # A name that is not UTF-8 could be neither stored nor sent; show it with marks instead.
    name = os.fsencode(shown.as_posix().removesuffix(SUFFIX)).decode(errors="replace")
    file = CheckpointFile(name, path, None, None, 0)
    try:
        file = replace(file, bytes=_size(folder, path))
        if path.is_dir():
            architecture, configs = recognise_folder(path), path
        else:
            architecture = recognise(read_header(path))
            configs = config_folder(path, architecture.family)
        side = native_side(configs, architecture.family)
        file = replace(file, family=architecture.family, native_side=side)
        sidecar = path.with_name(f"{path.name.removesuffix(SUFFIX)}.json")
        return replace(file, defaults=defaults(sidecar, side))
    except CheckpointError as error:
        return replace(file, error=str(error))
    except OSError as error:
        return replace(file, error=f"{path.name} cannot be read: {error.strerror}.")


def _size(folder: Path, path: Path) -> int:
    """Bytes on disk. Raises for a link out of ``folder``: it would make files from elsewhere on
    the machine into checkpoints."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    for one in paths:
        if _leaves(folder, one):
            raise damaged(
                one,
                "is a link that leaves its model folder",
                "Give the folder it leads to as a model folder of its own.",
            )
    return sum(one.stat().st_size for one in paths if one.is_file())


def _leaves(folder: Path, path: Path) -> bool:
    target = Path(os.path.realpath(path))
    return path.is_symlink() and not target.is_relative_to(os.path.realpath(folder))
