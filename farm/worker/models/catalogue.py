"""The assets found in the model folders, good and broken ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import farm
from farm.errors import CheckpointError
from farm.worker.models.architecture import MODEL_INDEX, recognise, recognise_folder
from farm.worker.models.defaults import defaults, native_side
from farm.worker.models.header import (
    damaged,
    file_identity,
    read_header,
    refuse_pickle,
)
from farm.worker.models.kinds import (
    CHECKPOINT,
    PICKLED,
    RESTRICTED,
    SUFFIX,
    VAE,
    VAE_SUFFIX,
    is_webui,
    kind_folders,
)
from farm.worker.models.vae import external_vae, lacks_vae

CONFIG_SUFFIX = ".config"
SIDECARS = (".json", ".yaml", CONFIG_SUFFIX, VAE_SUFFIX)
BUNDLES = Path(__file__).parent / "bundles"
MAX_METADATA = 2000
"""Characters of the longest metadata value that is kept; trainers also store whole tag lists."""

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
    marks: tuple[Identity | None, ...] = field(default=(), repr=False)


def builtin_folder() -> Path:
    """The model folder that ships with Farm; it holds the checkpoint ``demo``."""
    return Path(farm.__file__).parent / "data" / "demo"


def config_folder(path: Path, family: str) -> Path:
    """The configs of a single file: ``<stem>.config/`` beside it, else those of its family."""
    own = path.with_suffix(CONFIG_SUFFIX)
    return own if own.is_dir() else BUNDLES / family


def scan(folders: Sequence[Path], known: Mapping[Path, AssetFile] | None = None) -> list[AssetFile]:
    """Every asset under ``folders``, by kind and name. Broken ones carry their ``error``.

    Of two of one kind and name the first folder's is used; the other is listed with an error.

    Args:
        folders: model folders. What lies in a folder named as in webui is of that kind;
            everything else is taken for a checkpoint.
        known: entries of an earlier scan by path; a file is opened only if it, or a sidecar of
            it, has changed since.
    """
    found: dict[tuple[str, str], AssetFile] = {}
    shadowed: list[AssetFile] = []
    for folder in folders:
        for place in _places(folder, folders):
            file = _entry(place, folders, known or {})
            first = found.setdefault((file.kind, file.name), file)
            if os.path.realpath(first.path) != os.path.realpath(file.path):
                error = f"{file.name!r} is already the name of {first.path}. Rename one."
                shadowed.append(replace(file, error=error))
    vaes = [file.path for file in found.values() if file.kind == VAE]
    complete = [_with_vae(file, vaes) for file in found.values()]
    return sorted([*complete, *shadowed], key=lambda file: (file.kind, file.name, file.path))


def examine(path: Path, kind: str, *, within: Sequence[Path] = ()) -> AssetFile:
    """What a scan would list for one file or folder, wherever it lies.

    Args:
        within: folders that links in it may lead into.
    """
    folders = [path.parent, Path(os.path.realpath(path)).parent, *within]
    return _entry(_Place(path, kind, path.parent), folders, {})


@dataclass(frozen=True)
class _Place:
    """A path that is, or pretends to be, an asset, and the folder its name counts from."""

    path: Path
    kind: str
    base: Path

    @property
    def name(self) -> str:
        """A name that is not UTF-8 could be neither stored nor sent, so it is shown with marks."""
        shown = Path(self.path.name)
        if self.kind == CHECKPOINT:
            same = self.path == self.base
            shown = Path(self.base.resolve().name) if same else self.path.relative_to(self.base)
        return os.fsencode(shown.as_posix().removesuffix(SUFFIX)).decode(errors="replace")


def _places(folder: Path, folders: Sequence[Path]) -> Iterator[_Place]:
    """Everything in a model folder that has a kind."""
    kinds = kind_folders(folder)
    for base, kind in kinds.items():
        yield from _walk(base, kind, folders)
    if not is_webui(folder):
        yield from _walk(folder, CHECKPOINT, folders, leave_out=kinds)


def _walk(
    base: Path,
    kind: str,
    folders: Sequence[Path],
    leave_out: Mapping[Path, str] | None = None,
) -> Iterator[_Place]:
    for place, inner, names in os.walk(base):
        here = Path(place)
        if kind == CHECKPOINT and MODEL_INDEX in names:
            inner.clear()
            yield _Place(here, kind, base)
            continue
        # os.walk does not follow links; one that leads to a folder is listed to be refused.
        outside = [here / name for name in sorted(inner) if _outside(folders, here / name)]
        yield from (_Place(path, kind, base) for path in outside)
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".")
            and not name.endswith(CONFIG_SUFFIX)
            and here / name not in (leave_out or {})
        )
        for name in sorted(names):
            if Path(name).suffix.lower() in {SUFFIX, *PICKLED}:
                beside = kind == CHECKPOINT and name.endswith(VAE_SUFFIX)
                yield _Place(here / name, VAE if beside else kind, base)


def _entry(place: _Place, folders: Sequence[Path], known: Mapping[Path, AssetFile]) -> AssetFile:
    before = known.get(place.path)
    marks = _marks(place.path)
    if before is not None and before.marks == marks and marks[0] is not None:
        return before if before.has_vae else replace(before, error=None)
    file = AssetFile(place.name, place.path, None, None, 0, kind=place.kind, marks=marks)
    try:
        file = replace(file, bytes=_size(folders, place.path))
        return _checkpoint(file) if place.kind == CHECKPOINT else _other(file)
    except CheckpointError as error:
        return replace(file, error=str(error))
    except OSError as error:
        return replace(file, error=f"{place.path.name} cannot be read: {error.strerror}.")


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
        return replace(file, identity=file_identity(file.path.stat()))
    refuse_pickle(file.path)
    header = read_header(file.path)
    return replace(file, identity=header.identity, metadata=_short(header.metadata))


def _short(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in metadata.items() if len(text) <= MAX_METADATA}


def _marks(path: Path) -> tuple[Identity | None, ...]:
    """Identities of the path and of all that says how to read it."""
    inner = sorted(path.rglob("*")) if path.is_dir() else []
    beside = [path.with_suffix(suffix) for suffix in SIDECARS]
    configs = sorted(beside[2].rglob("*")) if beside[2].is_dir() else []
    return tuple(_identity(one) for one in (path, *inner, *beside, *configs))


def _identity(path: Path) -> Identity | None:
    try:
        return file_identity(path.stat())
    except OSError:
        return None


def _size(folders: Sequence[Path], path: Path) -> int:
    """Bytes on disk. Raises for a link out of the model folders: it would make files from
    elsewhere on the machine into assets."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    for one in paths:
        if _outside(folders, one):
            raise damaged(
                one,
                "is a link that leaves the model folders",
                "Give the folder it leads to as a model folder of its own.",
            )
    return sum(one.stat().st_size for one in paths if one.is_file())


def _outside(folders: Sequence[Path], path: Path) -> bool:
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))
    return not any(target.is_relative_to(os.path.realpath(folder)) for folder in folders)
