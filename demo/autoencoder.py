"""Trains the small VAE: from a plain start to the pictures, then scaled for the UNet."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.course import Course
from demo.denoising import LATENT_STD
from demo.scenes import Painter, random_scene

LIFT = 4.0
"""A constant pair of channels keeps group norms from dividing by nearly nothing."""
SIGNS = 8
"""Channels of the trunk that carry the picture at the start: RGB, -RGB and the constant pair."""


@torch.no_grad()
def start_plain(vae: Any) -> None:
    """Make it nearly an exact autoencoder of 8x8 averages, to learn the rest from.

    The trunk hands colours down and up, every residual branch adds zero. From the usual random
    start it would take most of the training to get there.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for half in (vae.encoder, vae.decoder):
        _spread_colours(half.conv_in)
        norm = half.conv_norm_out
        per_group = norm.num_channels / norm.num_groups
        norm.weight[:SIGNS] = ((2.4 + 2 * LIFT**2) / per_group) ** 0.5
        for block in getattr(half, "down_blocks", None) or half.up_blocks:
            for resnet in block.resnets:
                if resnet.conv_shortcut is not None:
                    _hand_on(resnet.conv_shortcut, [(0, 0)])
            for sampler in getattr(block, "downsamplers", None) or []:
                _hand_on(sampler.conv, [(0, 0), (0, 1), (1, 0), (1, 1)])
            for sampler in getattr(block, "upsamplers", None) or []:
                _hand_on(sampler.conv, [(1, 1)])
    _join_colours(vae.encoder.conv_out)
    _join_colours(vae.decoder.conv_out)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        convolution.weight[:4, :4, 0, 0] = torch.eye(4)
    vae.quant_conv.bias[4:] = -5


def _spread_colours(convolution: nn.Conv2d) -> None:
    convolution.weight[:SIGNS] = 0
    convolution.bias.zero_()
    for colour in range(3):
        convolution.weight[colour, colour, 1, 1] = 1
        convolution.weight[3 + colour, colour, 1, 1] = -1
    convolution.bias[6], convolution.bias[7] = LIFT, -LIFT


def _join_colours(convolution: nn.Conv2d) -> None:
    convolution.bias.zero_()
    convolution.weight[:3].mul_(0.1)
    convolution.weight[:3, :SIGNS] = 0
    for colour in range(3):
        convolution.weight[colour, colour, 1, 1] = 1
        convolution.weight[colour, 3 + colour, 1, 1] = -1


def _hand_on(convolution: nn.Conv2d, taps: list[tuple[int, int]]) -> None:
    convolution.weight.mul_(0.5)
    convolution.bias.zero_()
    convolution.weight[:SIGNS] = 0
    for channel in range(SIGNS):
        for down, right in taps:
            convolution.weight[channel, channel, down, right] = 1 / len(taps)


class Copying:
    """The losses of one step at giving ``batch`` pictures back."""

    def __init__(self, vae: Any, painter: Painter, rng: random.Random, batch: int) -> None:
        self._vae, self._painter, self._rng, self._batch = vae, painter, rng, batch

    def losses(self, progress: float) -> dict[str, Tensor]:
        """``loss`` to follow: colours, edges and how far latents are from a standard normal."""
        pictures = self._crops(32 if progress < 0.5 else 64)
        latents = self._vae.encode(pictures).latent_dist
        # Drawn by the host, whatever the device, so that one state resumes it.
        noise = torch.randn(latents.mean.shape).to(pictures.device)
        difference = self._vae.decode(latents.mean + latents.std * noise).sample - pictures
        colours = difference.abs().mean() + 0.5 * difference.square().mean()
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        distance = latents.kl().mean() / pictures[0].numel()
        loss = colours + (0.5 * edges if progress > 0.1 else 0) + 1e-4 * distance
        return {"loss": loss, "error": difference.detach().square().mean()}

    def _crops(self, side: int) -> Tensor:
        """Half of whole pictures made small, half of large ones."""
        scenes = [random_scene(self._rng) for _ in range(self._batch)]
        whole = torch.stack([self._painter.paint(scene) for scene in scenes])
        half = self._batch // 2
        small = functional.interpolate(whole[:half], size=(64, 64), mode="area")
        cut = [self._cut(picture, side) for picture in [*small, *whole[half:]]]
        return torch.stack(cut).to(self._vae.device, memory_format=torch.channels_last)

    def _cut(self, picture: Tensor, side: int) -> Tensor:
        top, left = (self._rng.randrange(picture.shape[-1] - side + 1) for _ in range(2))
        return picture[:, top : top + side, left : left + side]


def train(vae: Any, painter: Painter, course: Course, *, seed: int, batch: int) -> None:
    """Train until the course ends."""
    vae.requires_grad_(True)
    copying = Copying(vae, painter, random.Random(seed + course.step), batch)
    course.run(lambda: copying.losses(course.progress))
    vae.requires_grad_(False)


@torch.no_grad()
def scale_latents(vae: Any, pictures: Tensor) -> None:
    """Change the two outermost convolutions so that the scaled latents have the wanted spread.

    Each channel, times ``scaling_factor``, gets mean 0 and deviation ``LATENT_STD`` over
    ``pictures``; what comes out of the decoder stays the same.
    """
    chunks = [chunk.to(vae.device) for chunk in pictures.split(16)]
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in chunks])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = LATENT_STD / std / vae.config.scaling_factor
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean) * gain
    vae.quant_conv.weight[:4] *= gain[:, None, None, None]
    vae.quant_conv.bias[4:] += 2 * gain.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight /= gain[None, :, None, None]
