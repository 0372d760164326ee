"""One checkpoint's weights on one device, and the three things they compute."""

from __future__ import annotations

import torch
from torch import Tensor

from farm.worker.models.text import TextEncoding


class Checkpoint:
    """Resident weights of one file on one device. Call it from one thread at a time.

    Attributes:
        name: the checkpoint's name in the catalogue.
        family: ``sd15`` or ``sdxl``.
        prediction: what the UNet returns: ``epsilon`` or ``v_prediction``.
        dtype, device: of the UNet.
        bytes: memory the weights take on ``device``.
        alphas_cumprod: 1000 values in float64, from the scheduler's betas.
        load_seconds: what loading took.
    """

    name: str
    family: str
    prediction: str
    dtype: torch.dtype
    device: torch.device
    bytes: int
    alphas_cumprod: list[float]
    load_seconds: float

    def encode(self, text: str, *, negative: bool = False) -> TextEncoding:
        """Encode a prompt of any length; an empty negative one is all zeros on SDXL."""
        raise NotImplementedError

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        *,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> Tensor:
        """One UNet forward.

        Args:
            x: [R, 4, h, w] float32 latents, already scaled by c_in.
            t: [R] float32 timesteps in 0..999, fractions allowed.
            tokens: [R, T, C].
            pooled: [R, P]; SDXL only.
            size_ids: [R, 6] original size, crop and target size; SDXL only.

        Returns:
            [R, 4, h, w] float32: the noise or the velocity, see ``prediction``.
        """
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """A latent [4, h, w] float32 to pixels [8h, 8w, 3] uint8 on the CPU.

        Raises:
            NumericFailure: the latent, or the image even in float32, is not finite.
        """
        raise NotImplementedError
