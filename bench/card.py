"""What a card is, what it can do at best, and how much of that a picture takes."""

from __future__ import annotations

import subprocess
from functools import cache
from math import inf
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from farm.spec.job import JobSpec
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.parts import build_on_meta, parts_of

SIDE, PRODUCTS, TRIES = 8192, 4, 10
FACTOR, TOKENS = 8, 77


def described() -> str:
    """Name, driver and CUDA of the card."""
    return f"{torch.cuda.get_device_name()}, driver {_driver()}, CUDA {torch.version.cuda}"


def peak(device: torch.device, dtype: torch.dtype, *, side: int = SIDE) -> float:
    """Operations a second of a large matrix product, the quickest of several; 2 for each product
    that is added."""
    one = torch.randn(side, side, dtype=dtype, device=device)
    other, made = torch.randn_like(one), torch.empty_like(one)
    best = inf
    for _ in range(TRIES):
        watch = Stopwatch(device)
        for _ in range(PRODUCTS):
            torch.matmul(one, other, out=made)
        watch.stop()
        best = min(best, watch.seconds())
    return 2 * side**3 * PRODUCTS / best


def operations(job: JobSpec, family: str) -> float:
    """What an image takes by full-size models, in UNet and VAE; texts are left out, and samplers
    that call the model more than once a step counted as if they did not."""
    unet = sum(
        each.steps * (len(each.parts) + each.guided) * _row(family, each.width, each.height)
        for each in job.passes
    )
    return unet + _picture(family, *job.size)


@cache
def _row(family: str, width: int, height: int) -> int:
    """A row of a UNet forward."""
    unet = _built(family, "unet")
    config = unet.config
    x = _nothing(1, config.in_channels, height // FACTOR, width // FACTOR)
    texts, extra = _nothing(1, TOKENS, config.cross_attention_dim), None
    if config.addition_embed_type == "text_time":
        numbers = 6 * config.addition_time_embed_dim
        wide = config.projection_class_embeddings_input_dim - numbers
        extra = {"text_embeds": _nothing(1, wide), "time_ids": _nothing(1, 6)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(x, _nothing(1), encoder_hidden_states=texts, added_cond_kwargs=extra)
    return counter.get_total_flops()


@cache
def _picture(family: str, width: int, height: int) -> int:
    """The decoding of a latent."""
    vae = _built(family, "vae")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(_nothing(1, 4, height // FACTOR, width // FACTOR))
    return counter.get_total_flops()


def _built(family: str, name: str) -> Any:
    part = next(part for part in parts_of(family) if part.name == name)
    return build_on_meta(part, BUNDLES / family)


def _nothing(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()
