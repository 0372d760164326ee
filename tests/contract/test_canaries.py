"""Canaries: the real engine draws what is known, and every wrong picture is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from farm.spec.canary import CANARIES, SIDE, TOLERANCE, answers, wrong
from farm.worker import canary
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan


def test_an_engine_in_good_health_makes_what_is_known() -> None:
    profile, device = profiles.by_name("cpu"), torch.device("cpu")
    with Engine(ModelCache(scan([builtin_folder()]), profile, device), profile, device) as engine:
        made = canary.make(engine)
    assert wrong(made) is None
    rounding = 0.6
    assert np.abs(np.subtract(made, answers())).max() <= rounding


def test_fields_are_mean_colours() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:8, 8:16] = (10, 20, 30)
    image[56, 56:] = 80
    found = canary.fields(image)
    assert len(found) == 3 * SIDE**2
    assert found[3:6] == [10.0, 20.0, 30.0]
    assert found[-3:] == [10.0, 10.0, 10.0], "one of eight rows of the last field"
    assert sum(found) == 90.0


KNOWN = [list(map(float, fields)) for fields in answers()]


def spoilt(field: int, by: float) -> list[list[float]]:
    made = [list(fields) for fields in KNOWN]
    made[1][field] += by
    return made


def flat(level: float) -> list[list[float]]:
    return [[level] * len(KNOWN[0])] * 3


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (KNOWN, None),
        (spoilt(0, TOLERANCE - 0.1), None),
        (spoilt(77, -TOLERANCE - 1), "a blue car is off by 9 of 255"),
        (KNOWN[:2], "2 of 3 known pictures"),
        ([], "0 of 3"),
        ([*KNOWN[:2], KNOWN[2][:-1]], "another size"),
        ([KNOWN[1], KNOWN[0], KNOWN[2]], "a red apple is off"),
        (flat(0), f"a red apple is off by {max(KNOWN[0]):.0f}"),
        (flat(128), f"a red apple is off by {max(abs(it - 128) for it in KNOWN[0]):.0f}"),
    ],
)
def test_a_wrong_picture_is_told(made: list[list[float]], told: str | None) -> None:
    found = wrong(made)
    assert (told is None) == (found is None)
    assert told is None or told in str(found)


def test_canaries_are_small() -> None:
    assert all(spec.width * spec.height * spec.steps <= 128 * 128 * 20 for spec in CANARIES)
