"""What a checkpoint's UNet predicts, and in which precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.attention import scoring_in
from farm.worker.models.decoder import FACTOR
from farm.worker.models.forwards import Forwards
from farm.worker.models.precision import computing_in, rungs

EDIT_CHANNELS, INPAINT_CHANNELS = 8, 9


class Predictor:
    """A UNet that is shown latents. Call it from one thread at a time.

    Args:
        unet: resident or streamed.
        unpainted: what an inpainting model is shown where all of the
            picture is to be painted.

    Attributes:
        dtype: what its weights are held in.
        edits: whether it is a model for editing, which is shown a picture.
        inpaints: whether it is one for inpainting.
        forwards: how it is called.
    """

    def __init__(
        self,
        unet: Any,
        profile: MemoryProfile,
        device: torch.device,
        *,
        unpainted: Callable[[int, int], Tensor],
    ) -> None:
        self._unet = unet
        self._unpainted = unpainted
        self.dtype: torch.dtype = getattr(torch, profile.dtype)
        self._ladder = rungs(self.dtype)
        self._rung, self._plainly = self._ladder[0], False
        self.forwards = Forwards(unet, profile, device)
        self.edits: bool = unet.config.in_channels == EDIT_CHANNELS
        self.inpaints: bool = unet.config.in_channels == INPAINT_CHANNELS

    @property
    def side(self) -> int:
        """Pixels of the side that it was made for."""
        return int(self._unet.config.sample_size) * FACTOR

    @property
    def rungs(self) -> int:
        """How many higher precisions it can compute in."""
        return len(self._ladder) - 1

    def precision(self, rungs: int) -> str:
        """The name of the precision so many higher."""
        return str(self._ladder[rungs])

    @contextmanager
    def lifted(self, rungs: int, *, plainly: bool = False) -> Iterator[None]:
        """In the block the UNet computes so many precisions higher than its weights are held in.

        Args:
            plainly: whether it computes as it is, neither recorded nor compiled: bit for bit the
                same at any time.
        """
        self._rung, self._plainly = self._ladder[rungs], plainly
        try:
            with ExitStack() as stack:
                if self._rung.dtype != self.dtype:
                    stack.enter_context(computing_in(self._unet, self._rung.dtype))
                elif rungs:
                    stack.enter_context(scoring_in(self._unet, self._rung.scores))
                yield
        finally:
            self._rung, self._plainly = self._ladder[0], False

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        *,
        pooled: Tensor | None,
        size_ids: Tensor | None,
        plainly: bool,
    ) -> Tensor:
        """One UNet forward.

        Args:
            x: [R, 4, h, w] float32 latents, already scaled by c_in; and behind them, [R, 8, h, w],
                what a model for editing sees. If it is given only latents it sees nothing, and an
                inpainting model is told that all of the picture is to be painted.
            t: [R] float32 timesteps in 0..999, fractions allowed.
            tokens: [R, T, C].
            pooled: [R, P]; the SDXL families only.
            size_ids: [R, 6] height and width of the original, top and left of the crop, height
                and width of the target, in pixels; SDXL only. For its refiner [R, 5]: instead of
                the target the aesthetic score.
            plainly: see :class:`Forwards`.

        Returns:
            [R, 4, h, w] float32: the noise or the velocity, see :class:`Checkpoint`.
        """
        missing = self._unet.config.in_channels - x.shape[1]
        if self.inpaints and missing:
            x = torch.cat([x, self._unpainted(*x.shape[2:]).expand(len(x), -1, -1, -1)], 1)
        elif missing:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
        dtype = self._rung.dtype
        inputs = (
            x.to(dtype),
            t,
            tokens.to(dtype),
            None if pooled is None else pooled.to(dtype),
            None if size_ids is None else size_ids.float(),
        )
        plainly = plainly or self._plainly or self._rung != self._ladder[0]
        return self.forwards(inputs, plainly=plainly).float()
