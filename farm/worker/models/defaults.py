"""The settings a checkpoint wants where a batch leaves them open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.errors import InvalidInput
from farm.spec.job import JobSpec
from farm.spec.problems import validated
from farm.worker.models.architecture import Architecture, read_config
from farm.worker.models.header import damaged

LATENT_SCALE = 8
# As published: SDXL-Turbo (arXiv 2311.17042) for 1 to 4 steps, SDXL-Lightning (arXiv 2402.13929)
# best at 4 and more, both without guidance.
FEW_STEPS: Mapping[str, Mapping[str, Any]] = {
    "turbo": {"steps": 4, "cfg_scale": 1.0, "sampler": "Euler a"},
    "lightning": {"steps": 4, "cfg_scale": 1.0, "sampler": "Euler"},
}
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "width": int,
    "height": int,
    "steps": int,
    "cfg_scale": (int, float),
    "sampler": str,
}


def native_side(configs: Path, architecture: Architecture) -> int:
    """Pixels of the side the model was trained at: its own UNet config's, else as recognised."""
    side = read_config(configs / "unet" / "config.json").get("sample_size")
    return side * LATENT_SCALE if isinstance(side, int) else architecture.side


def defaults(sidecar: Path, side: int, architecture: Architecture) -> dict[str, Any]:
    """Width, height, steps and guidance scale, and perhaps a sampler, those in ``sidecar`` first.

    The sidecar is ``<name>.json`` beside the checkpoint. Other programs keep notes in a file of
    that name too, so keys other than ours are left alone.

    Raises:
        CheckpointError: the sidecar is not JSON, or one of our keys has a value that no job
            may have.
    """
    chosen: dict[str, Any] = {"width": side, "height": side, "steps": 20, "cfg_scale": 7.0}
    chosen |= FEW_STEPS.get(architecture.few_steps or "", {})
    if not os.path.isfile(sidecar):
        return chosen
    for key, value in read_config(sidecar).items():
        if key not in KINDS:
            continue
        if isinstance(value, bool) or not isinstance(value, KINDS[key]):
            raise damaged(sidecar, f"has {value!r} for {key}", "Correct it or remove the file.")
        chosen[key] = value
    try:
        validated(JobSpec, {"checkpoint": "any", "seed": 0, **chosen})
    except InvalidInput as error:
        told = f"gives what no job may have: {error.message.rstrip('.')}"
        raise damaged(sidecar, told, error.remedy or "Correct it or remove the file.") from error
    return chosen
