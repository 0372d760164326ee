"""Previews: TAESD as diffusers decodes it, and a linear map that shows what the VAE would."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d

from farm.errors import CheckpointError
from farm.spec.job import JobSpec
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.kinds import PREVIEW
from farm.worker.models.preview import Previews, linear, linear_factors, read_decoder, tiny
from tests.against_diffusers import engine_s
from tests.networks import make_tiny_decoder

CPU = torch.device("cpu")


def latent(height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_taesd_decodes_as_in_diffusers(tmp_path: Path, layout: str) -> None:
    model: Any = make_tiny_decoder(tmp_path / "taesd.safetensors", layout)
    made = tiny(read_decoder(tmp_path / "taesd.safetensors", CPU), latent())
    with torch.no_grad():
        picture = model.decode(latent()[None]).sample[0]
    expected = ((picture + 1) / 2).clamp(0, 1).permute(1, 2, 0) * 255
    assert made.shape == (64, 96, 3)
    assert made.dtype == torch.uint8
    assert (made.float() - expected).abs().max() <= 1.01
    assert made.float().std() > 1


def test_a_large_one_is_made_smaller(tmp_path: Path) -> None:
    make_tiny_decoder(tmp_path / "taesd.safetensors", "original", width=4)
    decoder = read_decoder(tmp_path / "taesd.safetensors", CPU)
    assert tiny(decoder, latent(80, 16)).shape == (320, 64, 3)
    assert tiny(decoder, latent(64, 8)).shape == (512, 64, 3)


def test_the_linear_map_of_a_linear_vae_is_the_vae() -> None:
    factors = torch.tensor(
        [[0.1, 0.0, 0.05], [0.0, -0.1, 0.0], [0.02, 0.03, 0.0], [0.0, 0.0, 0.1], [0.5, 0.5, 0.4]]
    )

    def decode(one: torch.Tensor) -> torch.Tensor:
        small = linear(factors, one)
        return small.repeat_interleave(8, 0).repeat_interleave(8, 1)

    torch.testing.assert_close(linear_factors(decode), factors, rtol=0, atol=5e-3)


def test_what_is_not_finite_is_black() -> None:
    broken = latent()
    broken[0, 0, 0] = torch.nan
    made = linear(torch.ones(5, 3), broken)
    assert made[0, 0].tolist() == [0, 0, 0]


def test_without_taesd_a_preview_shows_what_the_picture_will() -> None:
    models = ModelCache(scan([builtin_folder()]), by_name("cpu"), CPU)
    job = JobSpec(
        checkpoint="demo", prompt="a red apple on a blue background", width=128, height=128, seed=1
    )
    ((latent, image),) = engine_s(models, job)
    checkpoint: Any = models.get("demo")
    fitted: list[torch.Tensor] = []

    def decode(one: torch.Tensor) -> torch.Tensor:
        fitted.append(one)
        return type(checkpoint).decode(checkpoint, one)

    checkpoint.decode = decode
    previews = Previews([], CPU)
    shown = previews.picture(checkpoint, latent)
    assert shown.shape == (16, 16, 3)
    small = avg_pool2d(torch.tensor(image).permute(2, 0, 1).float(), 8).permute(1, 2, 0).numpy()
    correlation = np.corrcoef(shown.float().numpy().ravel(), small.ravel())[0, 1]
    assert correlation > 0.9
    previews.picture(checkpoint, latent)
    assert len(fitted) == 1  # the map is fitted with one decode, and once


class Stand:
    """A checkpoint of which previews see no more than this."""

    def __init__(self, family: str) -> None:
        self.family = family

    def decode(self, one: torch.Tensor) -> torch.Tensor:
        return torch.full((8 * one.shape[1], 8 * one.shape[2], 3), 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("family", "files", "used"),
    [
        ("sd15", ["taesd_decoder"], True),
        ("sd2", ["taesd"], True),
        ("sdxl", ["taesd_decoder"], False),
        ("sdxl", ["taesdxl_decoder", "taesd_decoder"], True),
        ("ssd1b", ["taesdxl"], True),
        ("sd15", ["taesdxl_decoder"], False),
    ],
)
def test_the_decoder_is_the_family_s(
    tmp_path: Path, family: str, files: list[str], used: bool
) -> None:
    assets = []
    for name in files:
        path = tmp_path / f"{name}.safetensors"
        make_tiny_decoder(path, "original")
        assets.append(AssetFile(name, path, None, None, 0, kind=PREVIEW))
    checkpoint: Any = Stand(family)
    shown = Previews(assets, CPU).picture(checkpoint, latent())
    assert shown.shape == ((64, 96, 3) if used else (8, 12, 3))


def test_a_broken_decoder_is_refused_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taesd_decoder.safetensors"
    make_tiny_decoder(path, "original")
    weights = load_file(path)
    del weights["3.conv.0.weight"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="another shape than TAESD's"):
        read_decoder(path, CPU)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="holds no TAESD decoder"):
        read_decoder(path, CPU)
    asset = AssetFile("taesd_decoder", path, None, None, 0, kind=PREVIEW)
    checkpoint: Any = Stand("sd15")
    with caplog.at_level(logging.WARNING):
        assert Previews([asset], CPU).picture(checkpoint, latent()).shape == (8, 12, 3)
    assert "previews do without" in caplog.text
