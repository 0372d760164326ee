"""An image whose sampler decides its steps while it goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.worker.engine.requests import Denoise
from farm.worker.engine.slot import Slot
from farm.worker.engine.transfer import upload
from farm.worker.memory.exhaustion import on_host
from farm.worker.samplers import Draw, Program
from farm.worker.samplers.dpm_adaptive import ABSOLUTE, RELATIVE


@dataclass
class _Verdict:
    """On the latest attempt; see :meth:`DpmAdaptive.judge`.

    Attributes:
        noise: fresh, once it is drawn.
    """

    up: float | None
    noise: Tensor | None = None


class AdaptiveSlot(Slot):
    """A slot that looks at what every third call made, for which the host waits for the device.

    It shares forwards with other slots, and changes nothing for them but this wait.
    """

    def __init__(self, request: Denoise, program: Program, device: torch.device) -> None:
        super().__init__(request, program, device)
        self._begun_with = self._second_order = self.x
        self._verdict: _Verdict | None = None

    @property
    def numbers(self) -> NDArray[np.float64]:
        return self.step.numbers

    def settle(self) -> None:
        """See :meth:`Slot.settle`. Where memory runs out, the attempt stays judged as it was."""
        pilot = self.program.pilot
        third, second = self.registers[0], self.registers[3]
        if self._verdict is None:
            if pilot is None or pilot.ended or self.position < len(self.program.steps):
                return
            self._verdict = _Verdict(pilot.judge(self._error(third, second)))
        latent = self._begun_with
        if self._verdict.up is not None:
            latent = self._raised(third, self._verdict)
        home = torch.stack([latent, *self.registers[1:]])[None]
        if self._verdict.up is not None:
            self._second_order = second
        self._begun_with, self._verdict = latent, None
        self.move(home, 0)

    def _raised(self, third: Tensor, verdict: _Verdict) -> Tensor:
        """The result of an attempt that counts, with the noise that goes on top."""
        if not verdict.up:
            return third
        if verdict.noise is None:
            with on_host("the noise of a step"):
                verdict.noise = self._noise.draw(Draw())
        return third + verdict.up * upload(verdict.noise, third.device)

    def _error(self, third: Tensor, second: Tensor) -> float:
        """Root mean square of their difference, in tolerances."""
        largest = torch.maximum(second.abs(), self._second_order.abs())
        tolerance = (RELATIVE * largest).clamp(min=ABSOLUTE)
        return float(((second - third) / tolerance).square().mean().sqrt())
