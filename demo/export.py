"""The trained models as one file that any program for Stable Diffusion XL reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.models import CONFIGS, Models
from tests import original_layout


def export(models: Models, path: Path) -> None:
    """Write ``models`` in half precision, with the original key names.

    Words that no caption holds get zeros for a token: they were never trained, and zeros pack
    well. The config folder that belongs to the file is put beside it.
    """
    weights = (
        original_layout.unet(models.unet.state_dict(), models.unet.config.layers_per_block)
        | original_layout.vae(models.vae.state_dict())
        | original_layout.clip(models.whole("text_encoder"), "conditioner.embedders.0.transformer.")
        | original_layout.open_clip(
            models.whole("text_encoder_2"), "conditioner.embedders.1.model."
        )
    )
    halves = {name: weight.to(torch.float16).contiguous() for name, weight in weights.items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)
    shutil.copytree(CONFIGS, path.with_suffix(".config"), dirs_exist_ok=True)
