"""The loss that teaches the UNet, and a plain sampler to look at what it learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from demo.models import Models

STEPS = 1000
DRAWN_IN = 12
"""Steps of a picture to look at."""
LATENT_STD = 0.6
"""Of latents. Below one, so that little of the picture is left at the last step, where samplers
start from noise alone: flat bright backgrounds come out right."""
WHOLLY_DROPPED, EMPTY = 0.08, 0.04
"""Shares of captions whose conditioning is zeroed, and that are the empty text."""

_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2
ALPHAS = torch.cumprod(1 - _BETAS, 0)
_SIGNAL = ALPHAS / (1 - ALPHAS) * LATENT_STD**2
_WEIGHTS = (_SIGNAL.clamp(max=5) / _SIGNAL).clamp(max=1)


def losses(models: Models, latents: Tensor, captions: Sequence[str], draws: int) -> Tensor:
    """Squared error of the guessed noise, weighted by min-SNR (https://arxiv.org/abs/2303.09556).

    Args:
        latents: [n, 4, h, w], one for each caption.
        draws: noises tried on each picture; the text, dear to encode, is shared by them.

    What is random is drawn by the host, whatever the device, so that one state resumes all of it.

    Returns:
        [2, draws * n]: plain and weighted.
    """
    tokens, summaries = models.prompts(captions)
    kept = (torch.rand(len(captions)) > WHOLLY_DROPPED).float().to(latents.device)
    tokens = (tokens * kept[:, None, None]).repeat(draws, 1, 1)
    summaries = (summaries * kept[:, None]).repeat(draws, 1)
    latents = latents.repeat(draws, 1, 1, 1)
    count = len(latents)
    # One time in each of equal stretches: steadier than independent ones.
    times = ((torch.randperm(count) + torch.rand(count)) / count * STEPS).long()
    noise = torch.randn(latents.shape).to(latents.device)
    alphas = ALPHAS[times][:, None, None, None].to(latents.device)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    guess = models.noise(noisy, times, (tokens, summaries))
    plain = (guess - noise).square().mean((1, 2, 3))
    return torch.stack([plain, plain * _WEIGHTS[times].to(plain.device)])


@torch.no_grad()
def sampled(models: Models, prompts: Sequence[str], *, pixels: int, seed: int = 0) -> Tensor:
    """Pictures [n, 3, pixels, pixels] from -1 to 1, by DDIM steps at guidance 3."""
    noise = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), 4, pixels // 8, pixels // 8, generator=noise)
    latents = latents.to(models.device)
    tokens, summaries = models.prompts(prompts)
    texts = torch.cat([tokens, 0 * tokens]), torch.cat([summaries, 0 * summaries])
    times = torch.linspace(STEPS - 1, 0, DRAWN_IN + 1).long()
    for now, following in pairwise(times):
        both = models.noise(torch.cat([latents, latents]), now.expand(2 * len(prompts)), texts)
        asked, unasked = both.chunk(2)
        guess = unasked + 3 * (asked - unasked)
        clean = (latents - (1 - ALPHAS[now]).sqrt() * guess) / ALPHAS[now].sqrt()
        latents = ALPHAS[following].sqrt() * clean + (1 - ALPHAS[following]).sqrt() * guess
    return models.pictures(clean).cpu()
