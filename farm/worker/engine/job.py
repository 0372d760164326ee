"""A job inside the engine."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from math import inf, lcm
from time import monotonic
from typing import Any

from torch import Tensor

from farm.spec import networks
from farm.spec.job import JobSpec
from farm.worker.engine.batcher import Stage, Waiting
from farm.worker.engine.guide import Guide
from farm.worker.engine.requests import Decode, Denoise, EncodeText, Made, Request
from farm.worker.engine.rows import TOKENS_A_BLOCK
from farm.worker.engine.slot import Slot
from farm.worker.engine.stats import Ledger, Rendered
from farm.worker.recipes.txt2img import txt2img

_STAGES: dict[type[Request], Stage] = {
    EncodeText: "encode",
    Denoise: "denoise",
    Decode: "decode",
}

NEAR_BLOCKS = 12
"""Blocks up to which prompt and negative prompt are repeated to a common length."""


class Job:
    """A recipe under way, the request it waits for, and what it has cost.

    Attributes:
        key: what its owner calls it.
        order: its age in the engine, the lower the older.
        rank: the higher goes first, whatever its age.
        request: what the recipe waits for.
        lift: precisions above the checkpoint's own in which it must be denoised.
        slot: its place on the device, from the first step to the last.
        image: [height, width, 3] uint8 on the CPU, once the recipe has ended.
    """

    request: Request
    _waiting: Waiting

    def __init__(self, key: str, spec: JobSpec, order: int, rank: int = 1) -> None:
        self.key = key
        self.spec = spec
        self.order = order
        self.rank = rank
        self.future: Future[Rendered] = Future()
        self.future.set_running_or_notify_cancel()
        self.ledger = Ledger()
        self.lift = 0
        self.slot: Slot | None = None
        self.image: Tensor | None = None
        self._loras = networks.parse(spec.prompt).unet
        self._rows = len(spec.parts) + spec.guided
        self._recipe = txt2img(spec)
        self._wait_for(next(self._recipe))
        self._denoise_began = 0.0
        self._reported = 0.0

    @property
    def waiting(self) -> Waiting:
        """The request, as the batcher sees it; of a denoising its next call."""
        if self.slot and not self.slot.finished and self.slot.rows != self._waiting.rows:
            self._waiting = replace(self._waiting, rows=self.slot.rows)
        return self._waiting

    @property
    def steps(self) -> int:
        """Of the denoising under way, as its user counts them."""
        return self.slot.program.total if self.slot else 0

    def send(self, value: Any) -> None:
        """Hand the recipe what it waited for, and take its next request or its image."""
        try:
            self._wait_for(self._recipe.send(Made(self.request, value)))
        except StopIteration as end:
            self.image = end.value

    def open(self, slot: Slot) -> None:
        """Start denoising."""
        self.slot = slot
        self._denoise_began = monotonic()

    def close(self) -> Tensor:
        """End denoising, and return the latent."""
        assert self.slot is not None
        latent, self.slot = self.slot.x, None
        self.ledger.denoise_seconds += monotonic() - self._denoise_began
        return latent

    def restart(self, lift: int) -> None:
        """Denoise from the beginning, so many precisions above the checkpoint's own."""
        self.slot = None
        self.lift = lift
        self._wait_for(self.request)

    def due(self, seconds: float) -> bool:
        """Whether its progress was last told ``seconds`` ago or more; then it counts as told."""
        now = monotonic()
        if now - self._reported < seconds:
            return False
        self._reported = now
        return True

    def _wait_for(self, request: Request) -> None:
        self.request = request
        width, height, lengths = self.spec.width, self.spec.height, [1]
        loras, rows = self._loras, self._rows
        if isinstance(request, Denoise):
            guide = Guide(request)
            # Before the first call its noise level is not known; the most that it may take.
            rows = guide.rows(0, inf)
            width, height, loras = request.width, request.height, request.loras
            lengths = [length // TOKENS_A_BLOCK for length in guide.lengths]
        blocks = lcm(*lengths)
        self._waiting = Waiting(
            order=self.order,
            stage=_STAGES[type(request)],
            checkpoint=request.checkpoint,
            width=width,
            height=height,
            loras=loras,
            rows=rows,
            blocks=blocks,
            alone=blocks > max(NEAR_BLOCKS, *lengths),
            strict=self.spec.strict,
            lift=self.lift,
            rank=self.rank,
        )
