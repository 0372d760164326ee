"""Tiny random upscalers in the layouts that people have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor


def esrgan(*, scale: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Weights of one residual block and 8 filters, with the names of the first release."""
    torch.manual_seed(seed)
    model = ESRGAN(num_filters=8, num_blocks=1, scale=scale)
    weights: dict[str, Tensor] = model.state_dict()
    last = max(weights, key=lambda name: int(name.split(".")[1]) if name.endswith("bias") else 0)
    # So that what comes out has all shades.
    weights[last] = torch.tensor([0.3, 0.5, 0.7])
    weights[last.replace("bias", "weight")] *= 20
    return weights


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the names of Real-ESRGAN (4 times)."""
    plain = {
        "model.0": "conv_first",
        "model.1.sub.1": "conv_body",
        "model.3": "conv_up1",
        "model.6": "conv_up2",
        "model.8": "conv_hr",
        "model.10": "conv_last",
    }

    def name_of(name: str) -> str:
        if block := re.fullmatch(r"model\.1\.sub\.0\.RDB(\d)\.conv(\d)\.0\.(\w+)", name):
            return "body.0.rdb{}.conv{}.{}".format(*block.groups())
        stem, _, kind = name.rpartition(".")
        return f"{plain[stem]}.{kind}"

    return {name_of(name): weight for name, weight in weights.items()}


def write_upscaler(path: Path, weights: dict[str, Tensor], *, wrapped: bool = True) -> Path:
    """A file of it, a pickle if its suffix says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
        return path
    content: Any = {"params_ema": weights} if wrapped else weights
    torch.save(content, path)
    return path
