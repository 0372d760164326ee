"""The settings a checkpoint wants where a batch leaves them open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.worker.models.architecture import NATIVE_SIDES, read_config
from farm.worker.models.header import damaged

LATENT_SCALE = 8
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "width": int,
    "height": int,
    "steps": int,
    "cfg_scale": (int, float),
    "sampler": str,
}


def native_side(configs: Path, family: str) -> int:
    """Pixels of the side the model was trained at, from its UNet's config."""
    side = read_config(configs / "unet" / "config.json").get("sample_size")
    return side * LATENT_SCALE if isinstance(side, int) else NATIVE_SIDES[family]


def defaults(sidecar: Path, side: int) -> dict[str, Any]:
    """Width, height, steps and guidance scale, those in ``sidecar`` first.

    The sidecar is ``<name>.json`` beside the checkpoint. Other programs keep notes in a file of
    that name too, so keys other than ours are left alone.

    Raises:
        CheckpointError: the sidecar is not JSON, or one of our keys has a value of wrong kind.
    """
    chosen: dict[str, Any] = {"width": side, "height": side, "steps": 20, "cfg_scale": 7.0}
    if not sidecar.is_file():
        return chosen
    for key, value in read_config(sidecar).items():
        if key not in KINDS:
            continue
        if isinstance(value, bool) or not isinstance(value, KINDS[key]):
            raise damaged(sidecar, f"has {value!r} for {key}", "Correct it or remove the file.")
        chosen[key] = value
    return chosen
