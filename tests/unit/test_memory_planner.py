"""Memory profiles and the prediction of what fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.errors import DoesNotFit, InvalidInput
from farm.worker.memory.admission import check_fits
from farm.worker.memory.planner import (
    CONTEXT,
    UNET_ROW,
    peak_bytes,
    rows_allowed,
)
from farm.worker.memory.profiles import GIB, PROFILES, by_name, choose
from farm.worker.memory.weights import PARAMETERS, TEXT_PARAMETERS
from farm.worker.models.architecture import FAMILIES

FP32 = replace(by_name("24gb"), dtype="float32", vae_tile_over=4096**2)
FP16 = by_name("24gb")


@pytest.mark.parametrize(
    ("width", "reserved_gib"),
    # webui 1.8, SDXL in float32, "R:" of its memory line.
    [(512, 15.27), (1024, 18.12)],
)
def test_the_prediction_meets_what_webui_reported(width: int, reserved_gib: float) -> None:
    predicted = peak_bytes(FP32, "sdxl", width * width, 2) - CONTEXT
    assert predicted / GIB == pytest.approx(reserved_gib, rel=0.02)


def test_more_rows_pixels_and_weights_need_more() -> None:
    base = peak_bytes(FP16, "sdxl", 1024**2, 16)
    assert peak_bytes(FP16, "sdxl", 1024**2, 32) > base
    assert peak_bytes(FP16, "sdxl", 1536**2, 16) > base
    assert peak_bytes(FP16, "sdxl", 1024**2, 16, weights_bytes=13 * GIB) > base


@pytest.mark.parametrize(
    ("profile", "family", "side", "rows"),
    [
        ("24gb", "sdxl", 1024, 16),
        ("24gb", "sdxl", 512, 32),
        ("24gb", "sdxl", 1536, 4),
        ("24gb", "sdxl", 2048, 4),
        ("12gb", "sdxl", 1024, 8),
        ("8gb", "sdxl", 1024, 4),
        ("8gb", "sd15", 512, 8),
        ("4gb", "sd15", 512, 4),
        ("4gb", "sd2", 512, 4),
        ("8gb", "ssd1b", 1024, 4),
        ("8gb", "sdxl-refiner", 1024, 4),
        ("4gb", "sdxl", 512, 4),
        ("4gb", "sdxl", 1024, 2),
        ("cpu", "sd15", 512, 8),
    ],
)
def test_rows_by_profile(profile: str, family: str, side: int, rows: int) -> None:
    assert rows_allowed(by_name(profile), family, side, side) == rows


def test_every_family_can_be_planned() -> None:
    for table in (UNET_ROW, PARAMETERS, TEXT_PARAMETERS):
        assert set(table) == set(FAMILIES)
    assert all(TEXT_PARAMETERS[family] < PARAMETERS[family] / 2 for family in FAMILIES)


def test_a_tiny_model_is_limited_by_max_rows_alone() -> None:
    small = choose("cpu", 2 * GIB)
    assert rows_allowed(small, "sdxl", 128, 128) == 0  # a full-size SDXL would not fit
    assert rows_allowed(small, "sdxl", 128, 128, weights_bytes=48_000_000) == small.max_rows


def test_rows_are_always_a_bucket() -> None:
    for profile in PROFILES:
        for side in range(64, 4097, 192):
            rows = rows_allowed(profile, "sdxl", side, side, weights_bytes=0)
            assert rows in (0, *profile.buckets)


def test_too_large_names_the_nearest_size_that_fits() -> None:
    card = by_name("8gb")
    check_fits(card, "sdxl", 1024, 1024)
    with pytest.raises(DoesNotFit) as caught:
        check_fits(card, "sdxl", 4096, 2048)
    assert caught.value.field == "width"
    assert "4096x2048" in caught.value.message
    width, height = map(int, str(caught.value.remedy).rstrip(".").split()[-1].split("x"))
    check_fits(card, "sdxl", width, height)
    assert (width % 8, height % 8) == (0, 0)
    assert width / height == pytest.approx(2, rel=0.02)
    with pytest.raises(DoesNotFit):
        check_fits(card, "sdxl", width + 8, height + 8)


def test_a_checkpoint_larger_than_the_card_fits_at_no_size() -> None:
    with pytest.raises(DoesNotFit, match="smaller checkpoint"):
        check_fits(replace(by_name("4gb"), offload="model"), "sdxl", 512, 512)


@pytest.mark.parametrize(
    ("total_gib", "name"),
    # What torch reports for a 3090, 4060 Ti, 3060, 3070, 1650 and an H100.
    [(23.69, "24gb"), (15.6, "12gb"), (11.76, "12gb"), (7.79, "8gb"), (3.81, "4gb"), (79, "24gb")],
)
def test_cards_get_their_profile_with_their_own_memory(total_gib: float, name: str) -> None:
    total = int(total_gib * GIB)
    chosen = choose("cuda:0", total)
    assert (chosen.name, chosen.memory_bytes) == (name, total)
    assert by_name(name).weights_bytes <= chosen.weights_bytes < total


def test_a_machine_without_a_card_gets_the_cpu_profile() -> None:
    assert choose("cpu", 64 * GIB).name == "cpu"
    assert choose("cpu", 64 * GIB).dtype == "float32"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_profiles_are_sound(profile: object) -> None:
    known = by_name(profile.name)  # type: ignore[attr-defined]
    assert known is profile
    assert list(known.buckets) == sorted(set(known.buckets))
    assert known.buckets[-1] == known.max_rows
    assert known.weights_bytes < known.memory_bytes
    assert 2 * known.slots >= known.max_rows / 2


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="24gb, 12gb, 8gb, 4gb, cpu"):
        by_name("80gb")


@pytest.mark.parametrize(
    ("name", "family", "side"),
    [("24gb", "sdxl", 1024), ("12gb", "sdxl", 1024), ("8gb", "sdxl", 1024), ("4gb", "sd15", 512)],
)
def test_a_profile_holds_its_rows_beside_all_the_weights_it_allows(
    name: str, family: str, side: int
) -> None:
    profile = by_name(name)
    rows = rows_allowed(profile, family, side, side, weights_bytes=profile.weights_bytes)
    assert rows == rows_allowed(profile, family, side, side, weights_bytes=0) >= 4


def test_decoding_beside_a_forward_takes_both_their_memories() -> None:
    def peak(beside: int) -> int:
        return peak_bytes(FP16, "sdxl", 1024**2, 16, beside=beside)

    alone, small, large = peak(0), peak(512**2), peak(1024**2)
    assert alone < small < large
    assert peak_bytes(FP16, "sdxl", 1024**2, 1, beside=1024**2) > peak_bytes(
        FP16, "sdxl", 1024**2, 1
    )
