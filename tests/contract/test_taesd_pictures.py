"""Pictures by TAESD, where the profile says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import scan
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.decoder import Decoder
from tests.checkpoints import make_tiny
from tests.networks import make_tiny_decoder

CPU = torch.device("cpu")
LATENT = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(1))
TAESD = replace(by_name("cpu"), vae="taesd")


def held(folder: Path, **changes: Any) -> Checkpoint:
    profile = replace(TAESD, **changes)
    return ModelCache(scan([folder]), profile, CPU).get("tiny-sdxl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny(tmp_path, "sdxl")
    (tmp_path / "VAE-approx").mkdir()
    return tmp_path


@torch.no_grad()
def test_its_pictures_are_those_of_diffusers(folder: Path) -> None:
    model: Any = make_tiny_decoder(
        folder / "VAE-approx" / "taesdxl_decoder.safetensors", "original"
    )
    checkpoint = held(folder)
    image = model.decode(LATENT[None]).sample[0]
    expected = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0) * 255
    for made in (checkpoint.decode(LATENT), checkpoint.draft(LATENT).pixels):
        assert made.shape == (64, 96, 3)
        assert (made.float() - expected).abs().max() <= 1.01
    assert checkpoint.vae_call.mode == "taesd"
    assert not torch.equal(checkpoint.decode(LATENT), held(folder, vae="full").decode(LATENT))


def test_without_one_the_checkpoint_says_so(folder: Path) -> None:
    make_tiny_decoder(folder / "VAE-approx" / "taesd_decoder.safetensors", "original")  # SD1.5's
    with pytest.raises(CheckpointError, match="decodes by TAESD") as caught:
        held(folder)
    assert "taesdxl_decoder.safetensors" in str(caught.value.remedy)


class Tiny(torch.nn.Linear):
    """Stands in for TAESD: one colour, or what goes wrong."""

    def __init__(self, value: float = 0.0, error: Exception | None = None) -> None:
        super().__init__(1, 1)
        self.value, self.error = value, error
        self.calls = 0

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.error:
            raise self.error
        height, width = latent.shape[2:]
        return torch.full((1, 3, height * 8, width * 8), self.value)


@torch.no_grad()
def test_what_it_cannot_decode_the_vae_does(folder: Path) -> None:
    whole = held(folder, vae="full")
    expected, vae = whole.decode(LATENT), whole._decoder._vae
    overflowing = Tiny(float("nan"))
    decoder = Decoder(vae, tile_over=2**30, tiny=overflowing)
    draft = decoder.draft(LATENT)
    assert torch.equal(decoder.decode(LATENT, after=draft), expected)
    assert torch.equal(decoder.decode(LATENT), expected)
    assert overflowing.calls == 2

    too_large = Tiny(error=torch.OutOfMemoryError("CUDA out of memory"))
    decoder = Decoder(vae, tile_over=2**30, tile=64, tiny=too_large)
    for _ in range(2):
        assert decoder.decode(LATENT).shape == expected.shape
    assert too_large.calls == 1
    assert decoder.tile_over == 64 * 96 - 1
