"""The library: every asset of the model folders, kept up to date."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from farm.errors import CheckpointError, EmbeddingError, LoraError, UpscalerError
from farm.worker.models.catalogue import AssetFile, scan
from farm.worker.models.kinds import CHECKPOINT, EMBEDDING, LORA, SUFFIX, UPSCALER

NEAR_NAMES = 5
_ERRORS = {LORA: LoraError, EMBEDDING: EmbeddingError, UPSCALER: UpscalerError}


class Library:
    """Finds assets by the names people write. Safe with threads.

    Args:
        folders: model folders, the first having precedence where two files share a name.

    Attributes:
        version: another number whenever the assets are not what they were.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._scanning = threading.Lock()
        self._files: tuple[AssetFile, ...] = ()
        self.version = 0
        self.scan()

    def __iter__(self) -> Iterator[AssetFile]:
        """All assets as of the last scan, by kind and name."""
        return iter(self._files)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The model folders."""
        return self._folders

    def scan(self) -> bool:
        """Look at the folders again; only files that changed are opened.

        Returns:
            Whether anything is new, gone or different.
        """
        with self._scanning:
            before = self._files
            self._files = tuple(scan(self._folders, {file.path: file for file in before}))
            changed = self._files != before
            self.version += changed
            return changed

    def find(self, kind: str, name: str) -> AssetFile:
        """The usable asset of this kind and name; see :func:`find`."""
        return find(self._files, kind, name)


def version_of(assets: Iterable[AssetFile]) -> object:
    """What is not equal to what it was once the assets are not; of a library it costs nothing."""
    return assets.version if isinstance(assets, Library) else tuple(assets)


def family_of(assets: Iterable[AssetFile], name: str) -> str | None:
    """The family of the checkpoint of this name; None where there is none."""
    return next((one.family for one in assets if one.kind == CHECKPOINT and one.name == name), None)


def find(files: Sequence[AssetFile], kind: str, name: str) -> AssetFile:
    """The asset of this kind that ``name`` means: its name, with or without ``.safetensors``.

    Raises:
        CheckpointError: there is none (its near names are listed), or it is broken.
    """
    of_kind = [file for file in files if file.kind == kind]
    # Of two files with one name the broken or shadowed one must not hide the good one.
    named = {file.name: file for file in sorted(of_kind, key=lambda file: not file.error)}
    found = named.get(name) or named.get(name.removesuffix(SUFFIX))
    if found is None:
        raise _missing(kind, name, sorted(named))
    if found.error is not None:
        raise _ERRORS.get(kind, CheckpointError)(found.error, field=kind, value=name)
    return found


def _missing(kind: str, name: str, names: list[str]) -> CheckpointError:
    near = difflib.get_close_matches(name, names, NEAR_NAMES, cutoff=0.4)
    shown = near or names[:NEAR_NAMES]
    what = "LoRA" if kind == LORA else kind
    return _ERRORS.get(kind, CheckpointError)(
        f"There is no {what} {name!r}.",
        field=kind,
        value=name,
        remedy=f"Did you mean {', '.join(shown)}?" if shown else "Add one to a model folder.",
    )
