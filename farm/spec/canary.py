"""Canaries: pictures whose look is known, which tell a worker that makes wrong ones.

They are made with the demo checkpoint, which every worker has. What is compared is the mean colour
of each of 8 x 8 fields: cards, kernels and precisions change single pixels, but fields hardly. On a
CPU, float16 moves a field by at most 0.1 of 255 levels from float32 and bfloat16 by 1.1; two of
these pictures differ by 50 in the mean and by 200 somewhere, and black, grey or noise by as much.
So one tolerance in between does for all, and one field that is wrong is enough to be found out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from farm.spec.job import JobSpec

SIDE = 8
"""Fields along each side of a picture."""

TOLERANCE = 8.0
"""Levels of 255 by which the mean colour of a field may be off."""

CHECKPOINT = "demo"

CANARIES = tuple(
    JobSpec(
        checkpoint=CHECKPOINT,
        prompt=prompt,
        width=128,
        height=128,
        steps=20,
        sampler="Euler",
        cfg_scale=3.0,
        seed=seed,
    )
    for prompt, seed in (("a red apple", 1), ("a blue car", 2), ("a green tree", 3))
)

Fields = Sequence[float]
"""Red, green and blue of each field, row by row: ``3 * SIDE**2`` numbers from 0 to 255."""


@cache
def answers() -> tuple[Fields, ...]:
    """What the canaries look like; ``python -m demo.canaries`` makes them anew."""
    path = Path(__file__).parents[1] / "data" / "canaries.json"
    return tuple(json.loads(path.read_text()))


def wrong(seen: Sequence[Fields]) -> str | None:
    """What is wrong with what a worker's canaries look like; None if nothing is."""
    if len(seen) != len(CANARIES):
        return f"it made {len(seen)} of {len(CANARIES)} known pictures"
    for canary, known, found in zip(CANARIES, answers(), seen, strict=True):
        if len(found) != len(known):
            return f"its picture of {canary.prompt} has another size"
        off = max(abs(one - other) for one, other in zip(known, found, strict=True))
        if off > TOLERANCE:
            return f"its picture of {canary.prompt} is off by {off:.0f} of 255"
    return None
