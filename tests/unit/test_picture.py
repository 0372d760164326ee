"""What is said of a sound picture."""

from __future__ import annotations

import numpy as np
import pytest

from farm.worker.picture import remark

NIGHT = np.zeros((8, 8, 3), np.uint8)
STAR = NIGHT.copy()
STAR[3, 3] = 200
SKY = np.full((8, 8, 3), (60, 120, 220), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("picture", "said"),
    [(NIGHT, "almost black"), (NIGHT + 15, "almost black"), (STAR, None), (SKY, "flat"),
     (NIGHT + 20, "flat"), (NOISE, None)],
)  # fmt: skip
def test_remarks(picture: np.ndarray, said: str | None) -> None:
    assert remark(picture) == said
