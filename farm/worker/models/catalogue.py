"""The assets found in the model folders, good and broken ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import farm
from farm.errors import CheckpointError
from farm.worker.models.architecture import recognise, recognise_folder
from farm.worker.models.defaults import defaults, native_side
from farm.worker.models.files import legible, open_file
from farm.worker.models.header import (
    damaged,
    file_identity,
    read_header,
    refuse_pickle,
)
from farm.worker.models.kinds import (
    CHECKPOINT,
    CONFIG_SUFFIX,
    RESTRICTED,
    SUFFIX,
    VAE,
    VAE_SUFFIX,
)
from farm.worker.models.places import Place, leads_out, places
from farm.worker.models.vae import external_vae, lacks_vae

SIDECARS = (".json", ".yaml", CONFIG_SUFFIX, VAE_SUFFIX)
BUNDLES = Path(__file__).parent / "bundles"
MAX_METADATA, MAX_PAIRS = 2000, 200
"""Characters of the longest metadata name or value that is kept, as trainers also store whole tag
lists; and how many are kept."""
MAX_NAME = 200

Identity: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class AssetFile:
    """One asset on disk.

    Attributes:
        name: as people choose it. A checkpoint's is its path in the model folder, without
            suffix and with ``/``; that of all others the file name without suffix.
        path: the file, or a checkpoint's diffusers folder.
        family: what it fits, such as ``sd15``; None where it could not be told.
        native_side: pixels of the side a checkpoint was trained at; None where unknown.
        bytes: size on disk.
        error: why it cannot be used, or None.
        defaults: ``width``, ``height``, ``steps``, ``cfg_scale`` and perhaps ``sampler``, for
            what a batch leaves out.
        kind: one of :data:`farm.worker.models.kinds.KINDS`.
        dtype: what most of its weights are stored in, such as ``F16``; None where unknown.
        metadata: the short ones of the text pairs that its maker put in.
        identity: (size, mtime in ns, inode) of the file; None for a folder or an unreadable one.
        has_vae: whether a checkpoint has its VAE in it.
        shadowed: whether another file goes by its name, which is its ``error``.
        marks: identities of all files that this entry was made from, to see when one changes.
    """

    name: str
    path: Path
    family: str | None
    native_side: int | None
    bytes: int
    error: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    kind: str = CHECKPOINT
    dtype: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    identity: Identity | None = None
    has_vae: bool = True
    shadowed: bool = False
    marks: tuple[Identity | None, ...] = field(default=(), repr=False)


def builtin_folder() -> Path:
    """The model folder that ships with Farm; it holds the checkpoint ``demo``."""
    return Path(farm.__file__).parent / "data" / "demo"


def config_folder(path: Path, family: str) -> Path:
    """The configs of a single file: ``<stem>.config/`` beside it, else those of its family."""
    own = path.with_suffix(CONFIG_SUFFIX)
    return own if os.path.isdir(own) else BUNDLES / family


def scan(folders: Sequence[Path], known: Mapping[Path, AssetFile] | None = None) -> list[AssetFile]:
    """Every asset under ``folders``, by kind and name. Broken ones carry their ``error``.

    Of two of one kind and name the first folder's is used, or the one that is not broken; the
    other is listed with an error.

    Args:
        folders: model folders. What lies in a folder named as in webui is of that kind;
            everything else is taken for a checkpoint.
        known: entries of an earlier scan by path; a file is opened only if it, or a sidecar of
            it, has changed since.
    """
    named: dict[tuple[str, str], list[AssetFile]] = {}
    for folder in folders:
        for place in places(folder, folders):
            file = _entry(place, folders, known or {})
            named.setdefault((file.kind, file.name), []).append(file)
    found = [file for files in named.values() for file in _one_name(files)]
    vaes = [file.path for file in found if file.kind == VAE and not file.shadowed]
    complete = [_with_vae(file, vaes) for file in found]
    return sorted(complete, key=lambda file: (file.kind, file.name, file.path))


def examine(path: Path, kind: str, *, within: Sequence[Path] = ()) -> AssetFile:
    """What a scan would list for one file or folder, wherever it lies.

    Args:
        within: folders that links in it may lead into.
    """
    folders = [path.parent, Path(os.path.realpath(path)).parent, *within]
    return _entry(Place(path, kind, path.parent), folders, {})


def _entry(place: Place, folders: Sequence[Path], known: Mapping[Path, AssetFile]) -> AssetFile:
    before = known.get(place.path)
    marks = _marks(place.path)
    if before is not None and before.marks == marks and marks[0] is not None:
        beside = before.shadowed or not before.has_vae  # its error is of what lay beside it
        return replace(before, error=None, shadowed=False) if beside else before
    file = AssetFile(place.name, place.path, None, None, 0, kind=place.kind, marks=marks)
    try:
        _check_name(place)
        file = replace(file, bytes=_size(folders, place.path))
        return _checkpoint(file) if place.kind == CHECKPOINT else _other(file)
    except CheckpointError as error:
        # Who may read a file changes without a mark, and so may what a disk answers.
        again = isinstance(error.__cause__, OSError)
        return replace(file, error=str(error), marks=() if again else marks)
    except OSError as error:
        told = f"{legible(place.path.name)} cannot be read: {error.strerror}."
        return replace(file, error=told, marks=())


def _one_name(files: Sequence[AssetFile]) -> Iterator[AssetFile]:
    """Files of one kind and name: one of them is it. Others that are links to it are no files of
    their own."""
    first = next((file for file in files if not file.error), files[0])
    yield first
    for file in files:
        if os.path.realpath(file.path) == os.path.realpath(first.path):
            continue
        told = f"{file.name!r} is already the name of {first.path}. Rename one."
        yield file if file.error else replace(file, error=told, shadowed=True)


def _check_name(place: Place) -> None:
    if place.refusal:
        raise damaged(place.path, place.refusal, "Take it away, or let the worker's user read it.")
    if legible(str(place.path)) != str(place.path):
        raise damaged(place.path, "has a path that is not plain UTF-8", "Rename it.")
    if len(place.name) > MAX_NAME:
        raise damaged(place.path, f"has a name of more than {MAX_NAME} characters", "Rename it.")


def _checkpoint(file: AssetFile) -> AssetFile:
    path = file.path
    if path.is_dir():
        architecture, configs = recognise_folder(path), path
    else:
        header = read_header(path)
        architecture = recognise(header)
        configs = config_folder(path, architecture.family)
        file = replace(file, identity=header.identity, metadata=_short(header.metadata))
    side = native_side(configs, architecture)
    file = replace(
        file,
        family=architecture.family,
        native_side=side,
        dtype=architecture.dtype,
        has_vae=architecture.has_vae,
    )
    sidecar = path.with_name(f"{path.name.removesuffix(SUFFIX)}.json")
    return replace(file, defaults=defaults(sidecar, side, architecture))


def _with_vae(file: AssetFile, vaes: Sequence[Path]) -> AssetFile:
    """The entry, broken if the checkpoint has no VAE, nor one of these or one beside it."""
    if file.has_vae or file.error:
        return file
    try:
        found = external_vae(file.path, vaes)
    except CheckpointError as error:
        return replace(file, error=str(error))
    return file if found else replace(file, error=str(lacks_vae(file.path)))


def _other(file: AssetFile) -> AssetFile:
    if file.path.suffix.lower() in RESTRICTED.get(file.kind, ()):
        with open_file(file.path) as opened:
            return replace(file, identity=file_identity(os.fstat(opened.fileno())))
    refuse_pickle(file.path)
    header = read_header(file.path)
    return replace(file, identity=header.identity, metadata=_short(header.metadata))


def _short(metadata: Mapping[str, str]) -> dict[str, str]:
    fitting = (pair for pair in metadata.items() if max(map(len, pair)) <= MAX_METADATA)
    return dict(islice(fitting, MAX_PAIRS))


def _marks(path: Path) -> tuple[Identity | None, ...]:
    """Identities of the path and of all that says how to read it."""
    beside = [path.with_suffix(suffix) for suffix in SIDECARS]
    all = [path, *_inside(path), *beside, *_inside(path.with_suffix(CONFIG_SUFFIX))]
    return tuple(map(_identity, all))


def _inside(folder: Path) -> list[Path]:
    """What is in a folder and below, in an order that stays; of all else nothing. Files may come
    and go meanwhile."""
    return sorted(
        Path(place, name) for place, inner, names in os.walk(folder) for name in (*inner, *names)
    )


def _identity(path: Path) -> Identity | None:
    try:
        return file_identity(path.stat())
    except OSError:
        return None


def _size(folders: Sequence[Path], path: Path) -> int:
    """Bytes on disk. Raises for a link out of the model folders: it would make files from
    elsewhere on the machine into assets."""
    paths = [path, *_inside(path)]
    for one in paths:
        if leads_out(folders, one):
            raise damaged(
                one,
                "is a link that leaves the model folders",
                "Give the folder it leads to as a model folder of its own.",
            )
    return sum(one.stat().st_size for one in paths if os.path.isfile(one))
