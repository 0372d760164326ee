"""What was measured on different cards, put on one scale."""

from __future__ import annotations

from typing import Any

import pytest

from farm.db.rates import compared
from farm.dispatch.cost import FIRST_RATE, FIRST_UPSCALE, WEIGHT, Costs


def row(checkpoint: str, card: str, units: float, seconds: float, load: float | None = None) -> Any:
    return {
        "checkpoint": checkpoint,
        "card": card,
        "units": units,
        "seconds": seconds,
        "load": load,
    }


def test_cards_are_compared_by_what_they_both_made() -> None:
    found = compared(
        [
            row("a", "slow", 1000, 100, 4.0),
            row("b", "slow", 100, 30),
            row("a", "fast", 100, 5, 2.0),
            row("b", "fast", 10, 1.5),
            row("c", "fast", 10, 1),
            row("d", "other", 10, 7),
        ]
    )
    assert list(found.speeds.items()) == [("slow", 1.0), ("fast", 2.0), ("other", 1.0)]
    assert found.rates == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.7})
    assert found.loads == {"a": 3.0}


def test_costs_begin_with_it() -> None:
    costs = Costs()
    costs.know(compared([row("a", "slow", 100, 10, 4.0), row("a", "fast", 10, 0.5)]))
    assert costs.estimate("a", 5.0) == pytest.approx(0.5)
    assert costs.load("a") == 4.0
    assert (costs.speed("fast"), costs.speed("unheard of")) == (2.0, 1.0)


def test_models_that_enlarge_pictures_have_rates_of_their_own() -> None:
    costs = Costs()
    assert costs.estimate("a", 5.0, {"4x": 2.0}) == FIRST_RATE * (5.0 + 2.0 * FIRST_UPSCALE)
    taken = [row("a", "slow", 100, 10), row("a", "fast", 10, 0.5)]
    shown = [
        {"upscaler": "4x", "card": "slow", "size": 4.0, "seconds": 4.0},
        {"upscaler": "4x", "card": "fast", "size": 4.0, "seconds": 2.0},
    ]
    costs.know(compared(taken, shown))
    assert costs.estimate("a", 5.0, {"4x": 2.0}) == pytest.approx(0.5 + 2.0)
    assert (costs.knows("4x"), costs.knows("8x")) == (True, False)
    costs.learn_upscale("4x", 1.0, 1.0, "fast")
    assert costs.estimate("a", 0.0, {"4x": 1.0}) == pytest.approx(1.0 + WEIGHT)
