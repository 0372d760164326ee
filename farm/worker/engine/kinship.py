"""Which checkpoints mean the same by a latent."""

from __future__ import annotations

from collections.abc import Iterable

from farm.errors import InvalidInput
from farm.spec.hires import LATENT_UPSCALERS, PICTURE_UPSCALERS
from farm.spec.job import JobSpec
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.kinds import CHECKPOINT

KIN = {"sd15": "SD", "sd2": "SD", "sdxl": "SDXL", "sdxl-refiner": "SDXL", "ssd1b": "SDXL"}
"""Families by whose VAE their latents are; of any other one they become noise."""


def check_kinship(spec: JobSpec, assets: Iterable[AssetFile]) -> None:
    """Raise :class:`InvalidInput` if a latent would be handed to a checkpoint that means something
    else by it. What is not known is not refused."""
    names = [each.checkpoint.removesuffix(".safetensors") for each in spec.passes]
    if names[0] == names[-1] or spec.hires_upscaler not in LATENT_UPSCALERS:
        return
    families = {file.name: file.family for file in assets if file.kind == CHECKPOINT}
    first, last = (families.get(name) for name in (names[0], names[-1]))
    if not first or not last or KIN[first] == KIN[last]:
        return
    raise InvalidInput(
        f"{names[0]!r} makes latents of {KIN[first]}, and {names[-1]!r} would take them for those "
        f"of {KIN[last]}.",
        field="hires_upscaler",
        value=spec.hires_upscaler,
        remedy=f"Use one for pictures: {', '.join(PICTURE_UPSCALERS)}.",
    )
