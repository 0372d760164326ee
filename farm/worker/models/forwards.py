"""How a UNet is called: as it is, compiled, recorded, or both."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.compiled import CompiledBlocks
from farm.worker.models.graphs import CudaRecorder, Graphs, Inputs


class Forwards:
    """Forwards of one UNet, as its memory profile says. Call it from one thread at a time."""

    def __init__(self, unet: Any, profile: MemoryProfile, device: torch.device) -> None:
        self._unet = unet
        self._graphs = None
        if profile.cuda_graphs and device.type == "cuda":
            self._graphs = Graphs(CudaRecorder(device))
        self._compiled = CompiledBlocks(unet) if profile.compile == "regional" else None

    def __call__(self, inputs: Inputs, *, plainly: bool) -> Tensor:
        """[R, 4, h, w] of latents, timesteps, texts, and where the family has them summaries of
        the texts and size numbers; all in the precision that the UNet computes in.

        Args:
            plainly: use nothing that was prepared: its weights are not where they usually are,
                or not what, or the numbers must not depend on what is ready.
        """
        if plainly:
            if self._compiled:
                self._compiled.unused()
            return self._plain(inputs)
        if self._compiled is None and self._graphs is None:
            # Nothing looks at versions of tensors here, which is a fortieth of a small forward.
            with torch.inference_mode():
                return self._plain(inputs)
        shape = tuple(None if given is None else tuple(given.shape) for given in inputs)
        compiled = self._compiled is not None and self._compiled.ready(shape)
        with self._compiled.used(shape) if self._compiled else nullcontext():
            # A compiler tries out what it makes, and a recording must be the only thing that runs.
            if self._graphs is None or (self._compiled and self._compiled.busy):
                return self._plain(inputs)
            return self._graphs((shape, compiled), self._plain, inputs)

    @property
    def recorded_bytes(self) -> int | None:
        """Memory of the device that recordings hold; None where nothing is recorded."""
        return self._graphs.bytes if self._graphs else None

    def forget(self) -> None:
        """Weights have moved: nothing that knows where they lay is kept."""
        if self._graphs:
            self._graphs.forget()

    def give_up(self) -> bool:
        """Memory ran out: record no more.

        Returns:
            Whether that makes room on the device.
        """
        graphs, self._graphs = self._graphs, None
        return graphs is not None and graphs.forget()

    def _plain(self, inputs: Inputs) -> Tensor:
        x, t, tokens, pooled, sizes = inputs
        extra = None
        if pooled is not None and sizes is not None:
            extra = {"text_embeds": pooled, "time_ids": sizes}
        made: Tensor = self._unet(
            x, t, encoder_hidden_states=tokens, added_cond_kwargs=extra, return_dict=False
        )[0]
        return made
