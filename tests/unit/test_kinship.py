"""A latent goes only to checkpoints that mean the same by it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from farm.errors import InvalidInput
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.kinship import check_batch

FAMILIES = {"one": "sd15", "two": "sd2", "large": "sdxl", "larger": "ssd1b"}
TEMPLATE = {"checkpoint": "one", "width": 64, "height": 64, "seed": 1, "hires_scale": 2.0}


@pytest.mark.parametrize(
    ("fields", "axes", "refused"),
    [
        ({"hires_checkpoint": "large"}, {}, True),
        ({"hires_checkpoint": "large", "hires_scale": 1.0}, {}, False),
        ({"hires_checkpoint": "large", "denoising_strength": 0.0}, {}, False),
        ({"hires_checkpoint": "large", "hires_upscaler": "Lanczos"}, {}, False),
        ({"hires_checkpoint": "two"}, {}, False),
        ({"hires_checkpoint": "unknown"}, {}, False),
        ({"checkpoint": "larger", "hires_checkpoint": "large"}, {}, False),
        ({}, {"hires_checkpoint": ["", "two", "large"]}, True),
        ({"hires_checkpoint": "two"}, {"checkpoint": ["one", "large"]}, True),
        ({"hires_checkpoint": "large"}, {"hires_upscaler": ["Lanczos", "Latent"]}, True),
        ({"hires_checkpoint": "large"}, {"hires_scale": [1.0, 2.0]}, True),
    ],
)
def test_no_latent_is_taken_for_something_else(
    fields: dict[str, Any], axes: dict[str, list[Any]], refused: bool
) -> None:
    given = tuple((field, tuple(values)) for field, values in axes.items())
    batch = BatchSpec(template={**TEMPLATE, **fields}, axes=given)
    jobs = [JobSpec.model_validate(batch.job(ord).model_dump()) for ord in range(batch.total)]
    for asked, named in ((batch, "hires_upscaler"), (jobs, r"jobs\[\d\]\.hires_upscaler")):
        if not refused:
            check_batch(asked, FAMILIES.get)
            continue
        with pytest.raises(InvalidInput, match="would take them for") as raised:
            check_batch(asked, FAMILIES.get)
        assert raised.value.field is not None
        assert re.fullmatch(named, raised.value.field)
        assert "Lanczos" in str(raised.value.remedy)
