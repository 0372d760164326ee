"""Values that are no numbers, told by their bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm.worker.models.flaws import flaws

FORMATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
KEPT = (torch.float32, torch.bfloat16, torch.float16)
NUMBERS = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e-7, 448.0, -448.0])


def count(values: torch.Tensor, kept: torch.dtype) -> int:
    return flaws(values.view(torch.uint8), values.dtype, kept)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("stored", FORMATS)
def test_numbers_are_sound_and_nan_is_not(stored: torch.dtype, kept: torch.dtype) -> None:
    values = NUMBERS.to(stored)
    assert count(values, kept) == 0
    for bad in (torch.nan, -torch.nan):
        assert count(torch.cat([values, torch.tensor([bad, bad]).to(stored)]), kept) == 2


@pytest.mark.parametrize(
    ("stored", "kept", "largest", "too_large"),
    [
        (torch.float32, torch.float16, 65519.0, 65520.0),
        (torch.bfloat16, torch.float16, 65280.0, 65536.0),
        (torch.float32, torch.bfloat16, 3.3895e38, 3.4e38),
        (torch.float64, torch.float32, 3.4028e38, 3.5e38),
        (torch.float16, torch.float32, 65504.0, torch.inf),
        (torch.float8_e5m2, torch.float16, 57344.0, torch.inf),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_becomes_infinite_where_it_is_kept_is_broken(
    stored: torch.dtype, kept: torch.dtype, largest: float, too_large: float, sign: int
) -> None:
    assert count(torch.tensor([sign * largest], dtype=stored), kept) == 0
    assert count(torch.tensor([0.0, sign * too_large], dtype=stored), kept) == 1


@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(KEPT),
    st.binary(max_size=64).map(lambda raw: raw[: len(raw) // 4 * 4]),
)
def test_of_any_bytes_it_counts_what_torch_counts(
    stored: torch.dtype, kept: torch.dtype, raw: bytes
) -> None:
    block = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0).byte()
    values = block.clone().view(stored).to(kept)
    assert flaws(block, stored, kept) == int((~values.isfinite()).sum())
