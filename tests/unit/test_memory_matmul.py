"""The profile's say in how float16 products add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from farm.worker.memory.matmul import obey
from farm.worker.memory.profiles import by_name

SWITCH = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = SWITCH.allow_fp16_accumulation
    yield
    SWITCH.allow_fp16_accumulation = before


@pytest.mark.parametrize("on", [True, False])
def test_a_card_does_as_the_profile_says(*, on: bool) -> None:
    SWITCH.allow_fp16_accumulation = not on
    obey(replace(by_name("24gb"), fp16_accumulation=on), torch.device("cuda"))
    assert SWITCH.allow_fp16_accumulation == on


def test_a_cpu_leaves_it_alone() -> None:
    SWITCH.allow_fp16_accumulation = False
    obey(replace(by_name("cpu"), fp16_accumulation=True), torch.device("cpu"))
    assert not SWITCH.allow_fp16_accumulation
