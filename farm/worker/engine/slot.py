"""One image being denoised."""

from __future__ import annotations

import torch
from torch import Tensor

from farm.worker.engine.guide import Guide, Mix
from farm.worker.engine.requests import Denoise
from farm.worker.engine.transfer import upload
from farm.worker.samplers import Draw, Program, Step
from farm.worker.samplers.noise import ImageNoise

REGISTERS = 4


class Slot:
    """Where an image's program stands, and the registers it works on.

    Attributes:
        registers: [4, 4, height/8, width/8] float32: the latent, and what its sampler remembers,
            see :mod:`farm.worker.samplers.algebra`.
        position: calls of the model done.
    """

    def __init__(self, request: Denoise, program: Program, device: torch.device) -> None:
        self.request = request
        self.program = program
        self.position = 0
        self._shape = (4, request.height // 8, request.width // 8)
        self._guide = Guide(request)
        self._noise = ImageNoise(self._shape, request.seed, request.noise, program.levels)
        self._drawn: tuple[int, Tensor] | None = None
        registers = torch.zeros(REGISTERS, *self._shape)
        registers[0] = self._noise.first * program.start.noise
        if program.start.churn is not None:
            registers[0] += self._noise.draw(Draw()) * program.start.churn
        self.registers = upload(registers, device)

    @property
    def x(self) -> Tensor:
        """[4, height/8, width/8], the latent now."""
        return self.registers[0]

    @property
    def step(self) -> Step:
        return self.program.steps[self.position]

    @property
    def rows(self) -> int:
        """Rows of the forward that the step at hand takes."""
        return self._guide.rows(self.position, self.step.sigma)

    @property
    def mix(self) -> Mix:
        """What it shows the model in the step at hand."""
        return self._guide.at(self.position, self.step.sigma)

    @property
    def finished(self) -> bool:
        return self.position == len(self.program.steps)

    def noise(self) -> Tensor:
        """Noise for the step at hand, on the CPU; zero where it asks for none.

        Asked again for the same step it is the same noise: a forward that failed is retried.
        """
        if self.step.draw is None:
            return torch.zeros(self._shape)
        if self._drawn is None or self._drawn[0] != self.position:
            self._drawn = (self.position, self._noise.draw(self.step.draw))
        return self._drawn[1]

    def settle(self) -> None:
        """Decide how to go on, where that depends on what the last step made."""

    def advance(self, registers: Tensor) -> None:
        """Record what the step at hand has made."""
        self.registers = registers
        self.position += 1
