"""How deep a UNet's attention is, counted in the index of a single file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farm.worker.models.architecture import UNET
from farm.worker.models.header import Header


def depth_config(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a UNet's config must say of its transformer layers to match the file.

    SSD-1B and its like (https://arxiv.org/abs/2401.02677) are SDXL with layers taken out here
    and there, so the counts differ from block to block and between the way down and up.

    Args:
        header: of a single file.
        config: of the UNet; gives the blocks and how many layers each has.
    """
    blocks, stride = len(config["block_out_channels"]), config["layers_per_block"] + 1
    # The way down begins with one convolution; each block there ends with a downsampler.
    down = [[1 + block * stride + layer for layer in range(stride - 1)] for block in range(blocks)]
    up = [[block * stride + layer for layer in range(stride)] for block in range(blocks)]
    return {
        "transformer_layers_per_block": [_layers(header, "input", block) for block in down],
        "reverse_transformer_layers_per_block": [_layers(header, "output", block) for block in up],
    }


def _layers(header: Header, side: str, numbers: list[int]) -> list[int]:
    """Transformer layers of each of these places; 1 where there are none, which is not read."""
    counts = []
    for number in numbers:
        place = f"{UNET}{side}_blocks.{number}.1.transformer_blocks."
        found = {
            name[len(place) :].split(".")[0] for name in header.tensors if name.startswith(place)
        }
        counts.append(max(1, len(found)))
    return counts
