"""Pictures whose channels lie last all the way through a UNet."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor


class _Straight(Transformer2DModel):  # type: ignore[misc]
    """Transformer blocks that give their picture back as they took it.

    Tokens in a row are a picture whose channels lie last. diffusers' own turns it, and the next
    convolution turns it back.
    """

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        *,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            picture = self.proj_out(picture)
        return picture + residual


def keep_last(unet: Any) -> None:
    """Have transformer blocks leave channels where they are: last."""
    for layer in unet.modules():
        if type(layer) is Transformer2DModel:
            layer.__class__ = _Straight
