"""One image being denoised."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.errors import InvalidInput
from farm.worker.engine.areas import Area, area
from farm.worker.engine.drawing import Drawing
from farm.worker.engine.guide import Guide, Mix
from farm.worker.engine.requests import Denoise
from farm.worker.engine.transfer import upload
from farm.worker.memory.exhaustion import on_host
from farm.worker.samplers import Draw, Program, Step
from farm.worker.samplers.noise import ImageNoise

REGISTERS = 4


class Slot:
    """Where an image's program stands, and the registers it works on.

    Attributes:
        registers: [4, 4, height/8, width/8] float32: the latent, and what its sampler remembers,
            see :mod:`farm.worker.samplers.algebra`.
        position: calls of the model done.
        picture: [4, height/8, width/8], what it edits.
        area: what its mask says; None where it is made anew everywhere.

    Raises:
        InvalidInput: the latent to begin with, the picture, or the mask has another size, or the
            mask is none.
    """

    def __init__(self, request: Denoise, program: Program, device: torch.device) -> None:
        self.request = request
        self.program = program
        self.position = 0
        self._shape = (4, request.height // 8, request.width // 8)
        self._guide = Guide(request)
        with on_host("the first noise of an image"):
            self._noise = ImageNoise(self._shape, request.seed, request.noise, program.halving)
            started = self._started()
        self._home, self._place = upload(started, device)[None], 0
        if request.begin:
            self._home[0, 0] += self._given(request.begin.latent.value, "begin").to(device)
        self.picture: Tensor | None = None
        if request.edit:
            self.picture = self._given(request.edit.picture.value, "edit").to(device)
        self.area: Area | None = None
        if request.mask:
            known = self._given(request.mask.known.value, "mask.known").to(device)
            self.area = area(request.mask.share.value, known)
        wanted = [step.draw for step in program.steps]
        self._drawing = Drawing(self._noise, wanted, size=started[0].nbytes)

    def _started(self) -> Tensor:
        """Its registers before the first step, but for a latent it begins with."""
        start = self.program.start
        registers = torch.zeros(REGISTERS, *self._shape)
        extra = self.request.begin.extra_noise if self.request.begin else 0.0
        registers[0] = self._noise.first * (start.noise + extra)
        if start.churn is not None:
            registers[0] += self._noise.draw(Draw()) * start.churn
        return registers

    def _given(self, latent: Tensor, field: str) -> Tensor:
        if latent.shape == self._shape:
            return latent
        raise InvalidInput(
            f"A latent of {list(latent.shape)} does not go with one of {list(self._shape)}.",
            field=field,
            value=list(latent.shape),
            remedy="Give one of the image's own size.",
        )

    @property
    def registers(self) -> Tensor:
        return self._home[self._place]

    @property
    def x(self) -> Tensor:
        """[4, height/8, width/8], the latent now."""
        return self.registers[0]

    @property
    def result(self) -> Tensor:
        """[4, height/8, width/8], the latent in the end."""
        return self.area(self.x) if self.area else self.x

    @property
    def step(self) -> Step:
        return self.program.steps[self.position]

    @property
    def numbers(self) -> NDArray[np.float64]:
        """Those of the step at hand, see :class:`Step`."""
        numbers: NDArray[np.float64] = self.program.table[self.position]
        return numbers

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
        return self._drawing.at(self.position) if self.step.draw else torch.zeros(self._shape)

    def settle(self) -> None:
        """Decide how to go on, where that depends on what the last step made. Where it fails for
        want of memory it may be asked again."""

    def lives(self, home: Tensor, place: int) -> bool:
        """Whether its registers are the ``place``-th of ``home``."""
        return self._home is home and self._place == place

    @property
    def home(self) -> Tensor:
        """[S, 4, 4, height/8, width/8], the registers of all slots it was last stepped with."""
        return self._home

    def move(self, home: Tensor, place: int) -> None:
        """Its registers are now the ``place``-th of ``home``."""
        self._home, self._place = home, place

    def leave(self) -> None:
        """Keep nobody else's registers while it stands."""
        self.move(self.registers.clone()[None], 0)

    def advance(self, home: Tensor, place: int) -> None:
        """Record what the step at hand has made."""
        self.move(home, place)
        self._drawing.passed(self.position)
        self.position += 1
