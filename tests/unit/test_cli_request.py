"""What options make of an image that is to be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.cli.request import Asked
from farm.spec.batch import BatchRequest, freeze
from farm.spec.imagefile import encoded
from farm.spec.infotext import infotext
from farm.spec.job import JobSpec
from farm.spec.output import PNG

FIRST = {"checkpoint": "demo", "prompt": "a lion", "seed": 3, "steps": 7, "width": 64, "height": 64}
SECOND = {"hires_upscaler": "Lanczos", "hires_prompt": "a large lion", "denoising_strength": 0.4}


def again(path: Path, made: JobSpec, **options: float) -> JobSpec:
    """The job of ``farm submit a.png`` with these options, for a picture made like this."""
    path.write_bytes(encoded(Image.new("RGB", (64, 64)), infotext(made), PNG))
    request = BatchRequest.model_validate(Asked(str(path), options, []).request())
    return freeze(request, {"demo": {}}).job(0)


@pytest.mark.parametrize("size", [{"hires_scale": 2}, {"hires_width": 192}])
def test_a_scale_counts_instead_of_what_the_picture_was_made_with(
    tmp_path: Path, size: dict[str, Any]
) -> None:
    path, made = tmp_path / "a.png", JobSpec.model_validate({**FIRST, **SECOND, **size})
    assert again(path, made) == made
    larger = again(path, made, hires_scale=1.5)
    assert (larger.size, larger.hires_prompt) == ((96, 96), "a large lion")
    assert again(path, made, hires_scale=1.0) == JobSpec.model_validate(FIRST)
