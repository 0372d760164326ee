"""Pictures whose channels lie last from the first convolution of a UNet to the last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from farm.worker.memory.profiles import by_name
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from tests.checkpoints import tiny_file

CPU = torch.device("cpu")
ROWS = 2


def predicted(checkpoint: Checkpoint) -> Tensor:
    """A forward of some noise; of a size that convolutions may lay out as they like."""
    draw = torch.Generator().manual_seed(1)
    texts = checkpoint.encode("a red apple", "a car")
    return checkpoint.predict(
        torch.randn(ROWS, 4, 24, 16, generator=draw),
        torch.tensor([900.0, 20.0]),
        texts.tokens,
        pooled=texts.pooled,
        size_ids=None if texts.pooled is None else torch.full((ROWS, 6), 64.0),
    )


# The one has convolutions around its transformer blocks, the other linear layers.
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_transformer_blocks_leave_channels_last_and_compute_the_same(
    family: str, tmp_path: Path
) -> None:
    file = tiny_file(tmp_path, family)
    last, first = (
        load(file, replace(by_name("cpu"), channels_last=on), CPU) for on in (True, False)
    )
    seen: list[bool] = []

    def look(_: Any, given: tuple[Tensor, ...], made: Any) -> None:
        picture = given[0] if isinstance(made, Tensor) else made[0]
        seen.append(picture.is_contiguous(memory_format=torch.channels_last))

    unet = next(model for model in last.weights if isinstance(model, UNet2DConditionModel))
    for layer in unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.register_forward_hook(look)
            if not layer.use_linear_projection:
                layer.proj_out.register_forward_hook(look)
    with torch.no_grad():
        torch.testing.assert_close(predicted(last), predicted(first), atol=1e-5, rtol=1e-5)
    assert seen
    assert all(seen)
