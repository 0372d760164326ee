"""Canaries: known pictures that a quarantined worker makes to be let back to work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from farm.spec.canary import CANARIES, SIDE

if TYPE_CHECKING:
    from farm.worker.engine import Engine


def make(engine: Engine) -> list[list[float]]:
    """The mean colours of each canary's fields, see :data:`farm.spec.canary.Fields`.

    Raises:
        FarmError: the engine cannot make them.
    """
    # Batch 0 does not exist, so that nobody takes their steps for those of a job.
    made = [engine.submit(f"0-{number}.1", spec) for number, spec in enumerate(CANARIES)]
    return [fields(future.result().image) for future in made]


def fields(image: NDArray[np.uint8]) -> list[float]:
    """Mean colours of the fields of ``image``, [height, width, 3], sides multiples of SIDE."""
    height, width, _ = image.shape
    parts = image.reshape(SIDE, height // SIDE, SIDE, width // SIDE, 3)
    return [round(float(mean), 1) for mean in parts.mean((1, 3)).ravel()]
