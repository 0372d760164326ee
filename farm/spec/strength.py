"""How far down its schedule an image begins that is made from another one."""

from __future__ import annotations

from typing import NamedTuple

FULL = 0.999
"""Denoising strength counts up to this, as in webui: something of the image is always left."""
FINEST = 10_000
"""Steps of the longest schedule; of a strength that asks for more the end is taken."""


class Taken(NamedTuple):
    """A schedule, and the part of it that is taken.

    Attributes:
        steps: of the whole schedule.
        skipped: of these, at its beginning; 0..steps - 1.
    """

    steps: int
    skipped: int


def taken(steps: int, strength: float, *, exact: bool = False) -> Taken:
    """What webui makes of a denoising strength.

    Even at strength 0 the last step is taken. Where webui has no schedule at all, for an exact
    number of steps at strength 0, it is the end of one of as many steps.

    Args:
        steps: as the user counts them, at least 1.
        strength: 0..1, the share of the schedule that is taken.
        exact: take all these steps, of a schedule that is so much longer; webui's "do exactly the
            number of steps the slider specifies", and what it does in a hires pass.
    """
    share = min(strength, FULL)
    if exact:
        whole = max(int(min(steps / share, FINEST)), steps) if share > 0 else steps
        return Taken(whole, whole - steps)
    return Taken(steps, steps - int(share * steps) - 1)
