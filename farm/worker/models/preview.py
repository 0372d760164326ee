"""Small pictures of latents under way, for a hundredth of what the VAE costs, or for nothing.

Where the model folders hold a TAESD decoder for the family (Ollin Boer Bohan's tiny decoders,
https://github.com/madebyollin/taesd), it makes them. Otherwise each place of the latent becomes
one pixel, by a linear map that is fitted once to the checkpoint's own VAE: it decodes a smooth
random latent, and least squares find the 4x3 factors and 3 offsets that give its picture, made
eight times smaller. On the demo checkpoint this explains 0.9 of the variance of real pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from farm.errors import CheckpointError
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.header import damaged, read_header
from farm.worker.models.kinds import PREVIEW
from farm.worker.models.reader import read_tensors

log = logging.getLogger(__name__)

FACTOR = 8
MAX_SIDE = 512
BLOCKS = (3, 3, 3, 1)
DECODERS = {
    "sd15": ("taesd_decoder", "taesd"),
    "sd2": ("taesd_decoder", "taesd"),
    "sdxl": ("taesdxl_decoder", "taesdxl"),
    "ssd1b": ("taesdxl_decoder", "taesdxl"),
    "sdxl-refiner": ("taesdxl_decoder", "taesdxl"),
}
"""Family to the names that its decoder's file goes by."""

SAMPLE_SIDE, SAMPLE_GRID = 32, 4
"""Of the latent that the linear map is fitted to: its side, and places that are random."""


class Previews:
    """Makes previews on one device. Call it from the engine's thread.

    Args:
        files: the assets there are, asked anew for each preview.
    """

    def __init__(self, files: Iterable[AssetFile], device: torch.device) -> None:
        self._files = files
        self._device = device
        self._factors: WeakKeyDictionary[Checkpoint, Tensor] = WeakKeyDictionary()

    def picture(self, checkpoint: Checkpoint, latent: Tensor) -> Tensor:
        """What a latent of this checkpoint shows.

        Args:
            latent: [4, h, w], an estimate of the clean latent.

        Returns:
            [H, W, 3] uint8 on the device, which may still be at work on it: with TAESD up to 512
            pixels a side, else h times w.
        """
        decoder = self._decoder(checkpoint.family)
        if decoder is not None:
            return tiny(decoder, latent)
        if checkpoint not in self._factors:
            self._factors[checkpoint] = linear_factors(checkpoint.decode).to(self._device)
        return linear(self._factors[checkpoint], latent)

    def _decoder(self, family: str) -> nn.Module | None:
        file = decoder_file(self._files, family)
        return _known_decoder(file.path, file.identity, self._device) if file else None


def decoder_file(files: Iterable[AssetFile], family: str) -> AssetFile | None:
    """The file with the TAESD decoder of a family, if there is a usable one."""
    found = {file.name: file for file in files if file.kind == PREVIEW and not file.error}
    return next((found[name] for name in DECODERS.get(family, ()) if name in found), None)


def needed_decoder(files: Iterable[AssetFile], checkpoint: AssetFile) -> Path:
    """The file with the TAESD decoder that a checkpoint's pictures are to be made by.

    Raises:
        CheckpointError: there is none.
    """
    family = checkpoint.family or ""
    found = decoder_file(files, family)
    if found is None:
        names = " or ".join(f"{name}.safetensors" for name in DECODERS.get(family, ()))
        raise CheckpointError(
            f"The memory profile decodes by TAESD, and there is none for {checkpoint.name}.",
            field="checkpoint",
            value=checkpoint.name,
            remedy=f"Put {names or 'one'} into the VAE-approx folder, or set vae: full.",
        )
    return found.path


def read_decoder(path: Path, device: torch.device) -> nn.Module:
    """A TAESD decoder in float32, from a file with its original names or diffusers'.

    Raises:
        CheckpointError: damaged, or another model.
    """
    header = read_header(path)
    # diffusers' list of layers leaves out the first of the original one, which has no weights.
    original = "1.weight" in header.tensors
    names = [name for name in header.tensors if original or name.startswith("decoder.")]
    weights = read_tensors(header, names, dtype=torch.float32, device=device)
    renamed = {_layer(name) if original else name[8:]: weights[name] for name in names}
    first = renamed.get("layers.0.weight")
    if first is None or first.ndim != 4:
        raise damaged(path, "holds no TAESD decoder", "Use a taesd_decoder in .safetensors.")
    with torch.device("meta"):
        decoder: nn.Module = DecoderTiny(
            first.shape[1], 3, BLOCKS, (first.shape[0],) * len(BLOCKS), 2, "relu", "nearest"
        )
    try:
        decoder.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise damaged(path, "holds a decoder of another shape than TAESD's") from error
    return decoder.eval().requires_grad_(False)


@torch.no_grad()
def tiny(decoder: nn.Module, latent: Tensor) -> Tensor:
    """A latent's picture by a TAESD decoder, at most 512 pixels a side."""
    picture = (decoder(latent[None].float())[0] + 1) / 2
    shrink = -(-max(picture.shape[1:]) // MAX_SIDE)
    return _pixels(avg_pool2d(picture, shrink) if shrink > 1 else picture)


def linear(factors: Tensor, latent: Tensor) -> Tensor:
    """A latent's picture by a linear map, a pixel for each place; factors are [5, 3]."""
    colours = torch.tensordot(factors[:4], latent.float(), dims=([0], [0]))
    return _pixels(colours + factors[4].view(3, 1, 1))


def linear_factors(decode: Callable[[Tensor], Tensor]) -> Tensor:
    """The linear map that comes nearest to a VAE.

    Args:
        decode: a latent [4, h, w] to pixels [8h, 8w, 3] uint8.

    Returns:
        [5, 3] on the CPU: a row for each channel, and the offsets; colours are from 0 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, 4, SAMPLE_GRID, SAMPLE_GRID, generator=generator)
    smooth = interpolate(grid, size=(SAMPLE_SIDE, SAMPLE_SIDE), mode="bilinear")
    latent = (smooth / smooth.std())[0]
    picture = decode(latent).permute(2, 0, 1).float() / 255
    colours = avg_pool2d(picture, FACTOR).flatten(1).T
    places = torch.cat([latent.flatten(1), torch.ones(1, colours.shape[0])]).T
    factors: Tensor = torch.linalg.lstsq(places, colours).solution
    return factors


@lru_cache(maxsize=4)
def _known_decoder(path: Path, _: object, device: torch.device) -> nn.Module | None:
    """What the file of this path and identity holds; None where it cannot be used."""
    try:
        return read_decoder(path, device)
    except CheckpointError as error:
        log.warning("previews do without %s: %s", path.name, error)
        return None


def _layer(name: str) -> str:
    """``7.weight`` to ``layers.6.weight``."""
    number, _, rest = name.partition(".")
    return f"layers.{int(number) - 1}.{rest}" if number.isdecimal() else name


def _pixels(colours: Tensor) -> Tensor:
    """[3, H, W] from 0 to 1, to [H, W, 3] uint8; what is not finite is black."""
    shown: Any = colours.nan_to_num(0.0).clamp(0, 1).mul(255).to(torch.uint8)
    pixels: Tensor = shown.permute(1, 2, 0).contiguous()
    return pixels
