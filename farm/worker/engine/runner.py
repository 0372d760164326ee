"""Takes slots one step further on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from farm.worker.engine.guide import KEPT
from farm.worker.engine.rows import Rows
from farm.worker.engine.slot import REGISTERS, Slot
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.transfer import download, upload
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.samplers import Step


class Stepped:
    """A step of several slots that may still be running on the device.

    Attributes:
        slots: that were taken further.
        positions: the call that each of them did, from 0.
        rows: the forward's rows.
        estimates: [S, 4, h, w], of their clean latents.
    """

    def __init__(self, rows: Rows, watch: Stopwatch, checksums: Tensor, estimates: Tensor) -> None:
        self.estimates = estimates
        self.rows = rows
        self.slots = rows.slots
        self.positions = [slot.position - 1 for slot in rows.slots]
        self._watch = watch
        self._checksums = checksums

    def seconds(self) -> float:
        """What the step took. Waits for its end."""
        return self._watch.seconds()

    def finite(self) -> list[bool]:
        """For each slot, whether its latent is free of NaN and Inf. Waits for the step's end."""
        self._watch.seconds()
        return [isfinite(checksum) for checksum in self._checksums.tolist()]


class Runner:
    """Runs forwards on one device. Nothing in it waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # As many as a slot's guide remembers, for texts that take turns.
        self._packs: deque[Rows] = deque(maxlen=KEPT)

    def step(
        self, checkpoint: Checkpoint, slots: Sequence[Slot], *, bucket: int, blocks: int
    ) -> Stepped:
        """One forward and one update for all slots, whatever their samplers and steps.

        Only when all of it is queued do the slots advance: after an exception they stand where
        they stood, and the step can be tried again.
        """
        watch = Stopwatch(self._device)
        rows = self._packed(slots, bucket=bucket, blocks=blocks)
        numbers = [_numbers(checkpoint.prediction, slot.step) for slot in slots]
        c_in, t, c_skip, c_out = self._columns(numbers)
        registers = torch.stack([slot.registers for slot in slots])
        x = registers[:, 0]
        outputs = rows.predict(checkpoint, x * c_in, t.flatten())
        held = [*registers.unbind(1), *(c_skip * x + c_out * output for output in outputs)]
        if any(slot.step.draw for slot in slots):
            # Drawn only now: on a GPU the host draws while the model runs.
            held.append(upload(torch.stack([slot.noise() for slot in slots]), self._device))
        following = self._updated([slot.step for slot in slots], held)
        # A sum is finite only if all it adds up is, and is one small number to bring home.
        checksums = download(following[:, 0].sum(dim=(1, 2, 3)))
        for slot, made in zip(slots, following.unbind(), strict=True):
            slot.advance(made)
        watch.stop()
        return Stepped(rows, watch, checksums, held[REGISTERS])

    def forget(self) -> None:
        """Let go of everything kept for the next step."""
        self._packs.clear()

    def _packed(self, slots: Sequence[Slot], *, bucket: int, blocks: int) -> Rows:
        if self._packs and self._packs[-1].slots != slots:
            self._packs.clear()
        for packed in self._packs:
            if packed.fits(slots, bucket=bucket, blocks=blocks):
                return packed
        packed = Rows(slots, bucket=bucket, blocks=blocks, device=self._device)
        self._packs.append(packed)
        return packed

    def _columns(self, table: Sequence[tuple[float, ...]]) -> tuple[Tensor, ...]:
        """One column a number, [S, 1, 1, 1] each."""
        return upload(torch.tensor(table), self._device).view(len(table), -1, 1, 1, 1).unbind(1)

    def _updated(self, steps: Sequence[Step], held: Sequence[Tensor]) -> Tensor:
        """Every register of every slot, each the sum that its step says.

        Products are added one by one, without fusing and in a fixed order, so that a slot's
        numbers do not depend on its place among the others.

        Args:
            held: what is summed up, [S, 4, h, w] each, in the order of ``Step.update``.

        Returns:
            [S, 4, 4, h, w].
        """
        weights = torch.tensor([step.update for step in steps])
        used = weights.any(dim=0).any(dim=0).tolist()
        columns = upload(weights, self._device)[..., None, None, None].unbind(2)
        total = held[0].new_zeros(len(steps), REGISTERS, *held[0].shape[1:])
        for column, source, use in zip(columns, held, used, strict=False):
            if use:
                total += column * source[:, None]
        return total


def _numbers(prediction: str, step: Step) -> tuple[float, ...]:
    """c_in, t, c_skip and c_out.

    The model sees ``c_in x``, and ``c_skip x + c_out output`` is its estimate of the clean
    latent (Karras et al. 2022, table 1; v as in Salimans and Ho 2022, arXiv 2202.00512).
    """
    power = step.sigma**2 + 1
    if prediction == "v_prediction":
        return power**-0.5, step.t, 1 / power, -step.sigma * power**-0.5
    return power**-0.5, step.t, 1.0, -step.sigma
