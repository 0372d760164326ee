from __future__ import annotations

import pytest
import torch

from farm.errors import InvalidInput
from farm.worker.main import _profile

GIB = 2**30


@pytest.mark.parametrize(
    ("told", "device", "gib", "chosen"),
    [
        ("auto", "cpu", 16, "cpu"),
        ("auto", "cuda", 23.7, "24gb"),
        ("auto", "cuda", 11.6, "12gb"),
        ("auto", "cuda", 7.7, "8gb"),
        ("auto", "cuda", 3.8, "4gb"),
        ("auto", "cuda", 79, "24gb"),
        ("8gb", "cuda", 23.7, "8gb"),
    ],
)
def test_the_profile_is_the_devices_unless_another_is_named(
    told: str, device: str, gib: float, chosen: str
) -> None:
    assert _profile(told, torch.device(device), int(gib * GIB)).name == chosen


def test_a_profile_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInput, match="24gb, 12gb, 8gb, 4gb, cpu"):
        _profile("48gb", torch.device("cpu"), GIB)
