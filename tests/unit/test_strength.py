"""How far down its schedule an image begins that is made from another one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.spec.strength import FINEST, Taken, taken


@pytest.mark.parametrize(
    ("steps", "strength", "exact", "expected"),
    [
        # webui calls the model int(strength * steps) + 1 times
        (20, 0.75, False, Taken(20, 4)),
        (20, 0.5, False, Taken(20, 9)),
        (20, 0.0, False, Taken(20, 19)),
        (20, 1.0, False, Taken(20, 0)),
        (1, 1.0, False, Taken(1, 0)),
        (1, 0.0, False, Taken(1, 0)),
        (150, 0.999, False, Taken(150, 0)),
        # and exactly as often as asked, of int(steps / strength)
        (20, 0.7, True, Taken(28, 8)),
        (20, 0.75, True, Taken(26, 6)),
        (20, 1.0, True, Taken(20, 0)),
        (1, 0.02, True, Taken(50, 49)),
        (20, 0.0, True, Taken(20, 0)),
        (20, 1e-9, True, Taken(FINEST, FINEST - 20)),
    ],
)
def test_the_part_of_a_schedule_is_webui_s(
    steps: int, strength: float, exact: bool, expected: Taken
) -> None:
    assert taken(steps, strength, exact=exact) == expected


@given(st.integers(1, 150), st.floats(0, 1), st.booleans())
def test_there_is_always_a_step_to_take(steps: int, strength: float, exact: bool) -> None:
    part = taken(steps, strength, exact=exact)
    assert 0 <= part.skipped < part.steps <= FINEST
    assert part.steps - part.skipped <= steps
    assert not exact or part.steps - part.skipped == steps
