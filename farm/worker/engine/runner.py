"""Takes slots one step further on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import compress
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.worker.engine.guide import KEPT
from farm.worker.engine.rows import Rows
from farm.worker.engine.slot import REGISTERS, Slot
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.transfer import download, upload
from farm.worker.models.checkpoint import Checkpoint

SCALING = 4
"""Numbers beside the update that a step takes; see :func:`_scaling`."""


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
        table = np.stack([slot.numbers for slot in slots])
        (c_in, t, c_skip, c_out), update = self._columns(checkpoint.prediction, table)
        registers = _together(slots)
        x = registers[:, 0]
        guided, away = rows.predict(checkpoint, x * c_in, t.flatten())
        seen = c_skip * x
        estimates = rows.masked(seen + c_out * guided)
        taken = table[:, 2:].reshape(-1, len(update)) != 0
        used: list[bool] = np.logical_or.reduce(taken, axis=0).tolist()
        held = [*registers.unbind(1), estimates]
        # What nobody takes is not made, and noise is drawn only now: on a GPU the model runs.
        held.append(seen + c_out * away if used[-2] else estimates)
        # A step may draw noise that it takes nothing of, as k-diffusion's do; it is drawn then too.
        drawn = any(slot.step.draw for slot in slots)
        held.append(self._noise(slots) if drawn else estimates)
        following = _summed(compress(zip(update, held, strict=True), used))
        # A sum is finite only if all it adds up is, and is one small number to bring home.
        checksums = download(following[:, 0].sum(dim=(1, 2, 3)))
        for place, slot in enumerate(slots):
            slot.advance(following, place)
        watch.stop()
        return Stepped(rows, watch, checksums, estimates)

    def forget(self) -> None:
        """Let go of everything kept for the next step."""
        self._packs.clear()

    def _packed(self, slots: Sequence[Slot], *, bucket: int, blocks: int) -> Rows:
        if self._packs and self._packs[-1].slots != slots:
            for slot in self._packs[-1].slots:
                if slot not in slots and not slot.finished:
                    slot.leave()
            self._packs.clear()
        for packed in self._packs:
            if packed.fits(slots, bucket=bucket, blocks=blocks):
                return packed
        packed = Rows(slots, bucket=bucket, blocks=blocks, device=self._device)
        self._packs.append(packed)
        return packed

    def _columns(
        self, prediction: str, table: NDArray[np.float64]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The numbers of steps on the device: :func:`_scaling`, [S, 1, 1, 1] each, and what every
        register takes of each source, [S, 4, 1, 1, 1] each. One small copy for all."""
        together = np.concatenate([_scaling(prediction, table), table[:, 2:]], axis=1)
        numbers = upload(torch.from_numpy(together.astype(np.float32)), self._device)
        scaling, update = numbers[:, :SCALING], numbers[:, SCALING:]
        update = update.view(len(table), REGISTERS, -1)[..., None, None, None]
        return scaling[..., None, None, None].unbind(1), update.unbind(2)

    def _noise(self, slots: Sequence[Slot]) -> Tensor:
        return upload(torch.stack([slot.noise() for slot in slots]), self._device)


def _together(slots: Sequence[Slot]) -> Tensor:
    """[S, 4, 4, h, w], the registers of slots; they lie there while the same go on together."""
    home = slots[0].home
    if len(home) == len(slots) and all(s.lives(home, place) for place, s in enumerate(slots)):
        return home
    return torch.stack([slot.registers for slot in slots])


def _summed(terms: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """[S, 4, 4, h, w], every register of every slot, each the sum that its step says.

    Products are added one by one, without fusing and in a fixed order, so that a slot's
    numbers do not depend on its place among the others.

    Args:
        terms: what each register takes of a source, [S, 4, 1, 1, 1], and the source,
            [S, 4, h, w], in the order of ``Step.update``.
    """
    (column, source), *rest = terms
    total = column * source[:, None]
    for column, source in rest:
        total += column * source[:, None]
    return total


def _scaling(prediction: str, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, 4]: c_in, t, c_skip and c_out of steps by their numbers.

    The model sees ``c_in x``, and ``c_skip x + c_out output`` is its estimate of the clean
    latent (Karras et al. 2022, table 1; v as in Salimans and Ho 2022, arXiv 2202.00512).
    """
    sigma, t = table[:, 0], table[:, 1]
    power = sigma**2 + 1
    if prediction == "v_prediction":
        columns = power**-0.5, t, 1 / power, -sigma * power**-0.5
    else:
        columns = power**-0.5, t, np.ones_like(sigma), -sigma
    return np.stack(columns, axis=1)
