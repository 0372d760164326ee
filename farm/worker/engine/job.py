"""A job inside the engine."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from math import inf, lcm
from time import monotonic
from typing import Any

from torch import Tensor

from farm.spec.hires import PICTURE_UPSCALERS
from farm.spec.job import JobSpec
from farm.spec.passes import Pass
from farm.worker.engine.decisions import Stage, Waiting
from farm.worker.engine.guide import Guide
from farm.worker.engine.requests import (
    Crop,
    Decode,
    Denoise,
    EncodeImage,
    EncodeText,
    Made,
    Request,
    Resize,
    Upscale,
)
from farm.worker.engine.rows import TOKENS_A_BLOCK
from farm.worker.engine.slot import Slot
from farm.worker.engine.stats import Ledger, Rendered
from farm.worker.models.decoder import FACTOR
from farm.worker.recipes.txt2img import txt2img

_STAGES: dict[type[Request], Stage] = {
    EncodeText: "encode",
    EncodeImage: "encode",
    Upscale: "encode",
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
        aside: waits for the host, not for the device.
        shares: what its request is known by among those of other jobs; None where it waits for
            itself alone. Not the request, which holds on to what it was made with.
        leads: is the one that others of the same request wait for.
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
        self.aside = False
        self.shares: str | None = None
        self.leads = True
        self._passes = spec.passes
        self._passed = 0
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
        """Of all its passes, as its user counts them."""
        return sum(each.steps for each in self._passes)

    @property
    def checkpoints(self) -> list[str]:
        """Those of its passes that are not done yet, and the last one's, which decodes."""
        return [
            each.checkpoint for each in self._passes[min(self._passed, len(self._passes) - 1) :]
        ]

    @property
    def before(self) -> int:
        """Steps of the passes that are done."""
        return sum(each.steps for each in self._passes[: self._passed])

    @property
    def coming(self) -> tuple[Pass, ...]:
        """The passes after the one under way."""
        return self._passes[self._passed + 1 :]

    def send(self, value: Any) -> None:
        """Hand the recipe what it waited for, and take its next request or its image."""
        self._passed += isinstance(self.request, Denoise)
        self.lift = 0
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
        latent, self.slot = self.slot.result, None
        self.ledger.denoise_seconds += monotonic() - self._denoise_began
        return latent

    def take_over(self, other: Job) -> None:
        """Go on where another job of the same request stands, which then has no place."""
        self.slot, other.slot = other.slot, None
        self._denoise_began = monotonic()
        if self.lift != other.lift:
            self.lift = other.lift
            self._wait_for(self.request)

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
        self.aside = isinstance(request, Upscale) or (
            isinstance(request, Resize) and request.upscaler in PICTURE_UPSCALERS
        )
        self.shares = repr(request) if getattr(request, "kept", False) else None
        if isinstance(request, Resize | Crop):
            return
        own = self._passes[min(self._passed, len(self._passes) - 1)]
        width, height, loras, lengths = own.width, own.height, own.asked.unet, [1]
        rows = len(own.parts) + own.guided
        if isinstance(request, Decode):
            height, width = (FACTOR * side for side in request.latent.value.shape[1:])
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
