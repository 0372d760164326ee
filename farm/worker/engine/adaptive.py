"""An image whose sampler decides its steps while it goes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.worker.engine.requests import Denoise
from farm.worker.engine.slot import Slot
from farm.worker.engine.transfer import upload
from farm.worker.samplers import Draw, Program
from farm.worker.samplers.dpm_adaptive import ABSOLUTE, RELATIVE


class AdaptiveSlot(Slot):
    """A slot that looks at what every third call made, for which the host waits for the device.

    It shares forwards with other slots, and changes nothing for them but this wait.
    """

    def __init__(self, request: Denoise, program: Program, device: torch.device) -> None:
        super().__init__(request, program, device)
        self._begun_with = self._second_order = self.x

    @property
    def numbers(self) -> NDArray[np.float64]:
        return self.step.numbers

    def settle(self) -> None:
        pilot = self.program.pilot
        if pilot is None or pilot.ended or self.position < len(self.program.steps):
            return
        third, second = self.registers[0], self.registers[3]
        up = pilot.judge(self._error(third, second))
        latent = self._begun_with
        if up is not None:
            latent = third
            self._second_order = second
            if up:
                latent = third + up * upload(self._noise.draw(Draw()), third.device)
        self._begun_with = latent
        self.move(torch.stack([latent, *self.registers[1:]])[None], 0)

    def _error(self, third: Tensor, second: Tensor) -> float:
        """Root mean square of their difference, in tolerances."""
        largest = torch.maximum(second.abs(), self._second_order.abs())
        tolerance = (RELATIVE * largest).clamp(min=ABSOLUTE)
        return float(((second - third) / tolerance).square().mean().sqrt())
