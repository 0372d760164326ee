"""Which checkpoints mean the same by a latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

from farm.errors import InvalidInput
from farm.spec.batch import BatchSpec
from farm.spec.cells import given, has_second_pass
from farm.spec.hires import LATENT_UPSCALERS, PICTURE_UPSCALERS
from farm.spec.job import JobSpec

KIN = {"sd15": "SD", "sd2": "SD", "sdxl": "SDXL", "sdxl-refiner": "SDXL", "ssd1b": "SDXL"}
"""Families by whose VAE their latents are; of any other one they become noise."""

_HANDED_ON = ("checkpoint", "hires_checkpoint", "hires_upscaler")

Family = Callable[[str], str | None]
"""The family of a checkpoint; None where that is not known."""


def check_job(job: JobSpec, family: Family, *, where: str = "") -> None:
    """Raise :class:`InvalidInput` if a latent would be handed to a checkpoint that means something
    else by it. What is not known is not refused.

    Args:
        where: what the error puts before the name of the field.
    """
    if not job.hires_checkpoint:  # Most have none, of a million lines.
        return
    last = job.passes[-1].checkpoint
    _check(job.checkpoint, last, job.hires_upscaler, family, where=where)


def check_batch(batch: BatchSpec | Sequence[JobSpec], family: Family) -> None:
    """The same of all jobs; of a batch with axes, without counting its cells."""
    if not isinstance(batch, BatchSpec):
        for ord, job in enumerate(batch):
            check_job(job, family, where=f"jobs[{ord}].")
        return
    values = partial(given, template=batch.template, axes=dict(batch.axes))
    second = has_second_pass(batch.template, dict(batch.axes))
    if not (second and any(values("denoising_strength"))):
        return
    choices = (dict.fromkeys(values(field)) for field in _HANDED_ON)
    for first, second, upscaler in product(*choices):
        _check(first, second or first, upscaler, family)


def _check(first: str, last: str, upscaler: str, family: Family, *, where: str = "") -> None:
    names = [name.removesuffix(".safetensors") for name in (first, last)]
    if names[0] == names[1] or upscaler not in LATENT_UPSCALERS:
        return
    kin = [KIN.get(family(name) or "") for name in names]
    if None in kin or kin[0] == kin[1]:
        return
    field = f"{where}hires_upscaler"
    raise InvalidInput(
        f"{field}: {names[0]!r} makes latents of {kin[0]}, and {names[1]!r} would take them for "
        f"those of {kin[1]}.",
        field=field,
        value=upscaler,
        remedy=f"Use one for pictures: {', '.join(PICTURE_UPSCALERS)}.",
    )
