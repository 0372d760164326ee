"""Where assets lie in model folders, whether they can be read or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.spec.hires import upscaler_title
from farm.worker.models.architecture import MODEL_INDEX
from farm.worker.models.files import legible
from farm.worker.models.kinds import (
    CHECKPOINT,
    CONFIG_SUFFIX,
    PICKLED,
    SUFFIX,
    UPSCALER,
    VAE,
    VAE_SUFFIX,
    is_webui,
    kind_folders,
)


@dataclass(frozen=True)
class Place:
    """A path that is, or pretends to be, an asset.

    Attributes:
        base: the folder that a checkpoint's name counts from.
        refusal: why it is known to be unusable before anybody has opened it.
    """

    path: Path
    kind: str
    base: Path
    refusal: str | None = None

    @property
    def name(self) -> str:
        """What people call it, with marks for what is no character."""
        shown = Path(self.path.name)
        if self.kind == UPSCALER:
            return legible(upscaler_title(shown.stem))
        if self.kind == CHECKPOINT:
            same = self.path == self.base
            shown = Path(self.base.resolve().name) if same else self.path.relative_to(self.base)
        return legible(shown.as_posix().removesuffix(SUFFIX))


def places(folder: Path, folders: Sequence[Path]) -> Iterator[Place]:
    """Everything in a model folder that has a kind; links may lead into any of ``folders``."""
    kinds = kind_folders(folder)
    for base, kind in kinds.items():
        yield from _walk(base, kind, folders)
    if not is_webui(folder):
        yield from _walk(folder, CHECKPOINT, folders, leave_out=kinds)


def leads_out(folders: Sequence[Path], path: Path) -> bool:
    """Whether it is a link to something that is in none of these folders."""
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))
    return not any(target.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _walk(
    base: Path,
    kind: str,
    folders: Sequence[Path],
    leave_out: Mapping[Path, str] | None = None,
) -> Iterator[Place]:
    shut: list[OSError] = []
    for place, inner, names in os.walk(base, onerror=shut.append):
        here = Path(place)
        if kind == CHECKPOINT and MODEL_INDEX in (*names, *inner):
            inner.clear()
            yield Place(here, kind, base)
            continue
        files = [name for name in sorted(names) if Path(name).suffix.lower() in {SUFFIX, *PICKLED}]
        if here.suffix.lower() == SUFFIX and not files and not inner:
            yield Place(here, kind, base, "is a folder")
        # os.walk does not follow links; one that leads to a folder is listed to be refused.
        outside = [here / name for name in sorted(inner) if leads_out(folders, here / name)]
        yield from (Place(path, kind, base) for path in outside)
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".")
            and not name.endswith(CONFIG_SUFFIX)
            and here / name not in (leave_out or {})
        )
        for name in files:
            beside = kind == CHECKPOINT and name.endswith(VAE_SUFFIX)
            yield Place(here / name, VAE if beside else kind, base)
    for error in shut:
        if not isinstance(error, FileNotFoundError):
            yield Place(Path(error.filename), kind, base, f"cannot be read: {error.strerror}")
