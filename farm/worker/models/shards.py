"""The weights of one model in a diffusers folder: one file, or several with an index."""

from __future__ import annotations

from pathlib import Path

import torch

from farm.worker.models.architecture import read_config
from farm.worker.models.header import damaged, read_header
from farm.worker.models.plan import Source

HALF = "fp16"


def folder_sources(folder: Path, stem: str, dtype: torch.dtype) -> tuple[Source, ...]:
    """Every tensor of a model; of two variants the one nearer to ``dtype``.

    Args:
        folder: of the model, such as ``unet``.
        stem: of its weights file.

    Raises:
        CheckpointError: there are no safetensors, or the index does not fit the files.
    """
    variants = ["", HALF] if dtype == torch.float32 else [HALF, ""]
    for variant in variants:
        path = folder / f"{stem}{variant and '.'}{variant}.safetensors"
        if path.is_file():
            header = read_header(path)
            return (Source(header, tuple(header.tensors)),)
        index = folder / f"{stem}.safetensors.index{variant and '.'}{variant}.json"
        if index.is_file():
            return _shards(index)
    raise damaged(
        folder,
        f"lacks {stem}.safetensors",
        "Farm reads safetensors, whole or in shards with an index, and no pickles.",
    )


def _shards(index: Path) -> tuple[Source, ...]:
    places = read_config(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise damaged(index, "has no weight_map")
    files = sorted({str(place) for place in places.values()})
    if strays := [file for file in files if Path(file).name != file]:
        raise damaged(index, f"leads out of its folder: {strays[0]}")
    sources = []
    for file in files:
        header = read_header(index.parent / file)
        names = tuple(name for name, place in places.items() if place == file)
        if missing := [name for name in names if name not in header.tensors]:
            raise damaged(header.path, f"lacks {missing[0]}, which {index.name} says it holds")
        sources.append(Source(header, names))
    return tuple(sources)
