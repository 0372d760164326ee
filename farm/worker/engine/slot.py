"""One image being denoised."""

from __future__ import annotations

import torch
from torch import Tensor

from farm.worker.engine.requests import Denoise
from farm.worker.engine.transfer import upload
from farm.worker.samplers import Program, Step


class Slot:
    """Where an image's program stands, and the registers it works on.

    All its noise comes from one generator on the CPU, seeded by the job: the first draw is the
    initial latent, then one draw for each step that asks for noise, as webui's RNG "CPU". So no
    other job can change it.

    Attributes:
        x: [4, height/8, width/8] float32, the latent now.
        previous: likewise, the estimate of the clean latent one step ago; zero at first.
        position: steps done.
    """

    def __init__(self, request: Denoise, program: Program, device: torch.device) -> None:
        self.request = request
        self.program = program
        self.position = 0
        self._generator = torch.Generator().manual_seed(request.seed)
        self._shape = (4, request.height // 8, request.width // 8)
        self._drawn: tuple[int, Tensor] | None = None
        self.x = upload(self._draw() * program.initial_scale, device)
        self.previous = torch.zeros_like(self.x)

    @property
    def step(self) -> Step:
        return self.program.steps[self.position]

    @property
    def finished(self) -> bool:
        return self.position == len(self.program.steps)

    def noise(self) -> Tensor:
        """Noise for the step at hand, on the CPU; zero where it asks for none.

        Asked again for the same step it is the same noise: a forward that failed is retried.
        """
        if not self.step.update.noise:
            return torch.zeros(self._shape)
        if self._drawn is None or self._drawn[0] != self.position:
            self._drawn = (self.position, self._draw())
        return self._drawn[1]

    def advance(self, x: Tensor, estimate: Tensor) -> None:
        """Record what the step at hand has made."""
        self.x = x
        self.previous = estimate
        self.position += 1

    def _draw(self) -> Tensor:
        return torch.randn(self._shape, generator=self._generator)
