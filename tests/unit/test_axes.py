from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec.axes import AXIS_FIELDS, LABELS, by_field, parse_values


@pytest.mark.parametrize(
    ("field", "text", "values"),
    [
        ("steps", "10", [10]),
        ("steps", "1, 2,5", [1, 2, 5]),
        ("steps", "1-5", [1, 2, 3, 4, 5]),
        ("steps", "1-10 (+3)", [1, 4, 7, 10]),
        ("steps", "1-9 (+3)", [1, 4, 7]),
        ("steps", "10-1 (-3)", [10, 7, 4, 1]),
        ("steps", "5-1", [5, 4, 3, 2, 1]),
        ("steps", "1-10 [4]", [1, 4, 7, 10]),
        ("steps", "1, 8-10", [1, 8, 9, 10]),
        ("cfg_scale", "0.2-0.8 (+0.25)", [0.2, 0.45, 0.7]),
        ("cfg_scale", "0.1-0.3 (+0.1)", [0.1, 0.2, 0.3]),
        ("cfg_scale", ".5-1.5 [3]", [0.5, 1.0, 1.5]),
        ("prompt", 'a, "b, c"', ["a", "b, c"]),
        ("prompt_sr", "red, blue", ["red", "blue"]),
        ("sampler", ["Euler", "Euler a"], ["Euler", "Euler a"]),
        ("seed", 7, [7]),
    ],
)
def test_the_notation_of_xyz_plots(field: str, text: object, values: list[object]) -> None:
    assert parse_values(field, text) == values


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("steps", "many"),
        ("steps", "1-5 (-1)"),
        ("steps", "1-5 (+0)"),
        ("steps", "1-5 [0]"),
        ("steps", "1.5"),
        ("steps", "1-999999999"),
        pytest.param("steps", "1-9999," * 200_000, id="a billion in a few bytes each"),
        ("steps", ""),
        ("steps", []),
        ("loudness", [1]),
    ],
)
def test_what_cannot_be_read_names_the_axis(field: str, given: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_values(field, given)
    assert raised.value.field == f"axes.{field}"
    assert raised.value.remedy


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9))
def test_a_range_starts_at_its_start_and_never_overshoots(a: int, b: int, step: int) -> None:
    try:
        values = parse_values("seed", f"{a}-{b} ({step:+d})")
    except InvalidInput:
        assert step == 0 or (b - a) * step < 0
        return
    assert values[0] == a
    assert all(min(a, b) <= value <= max(a, b) for value in values)
    assert {y - x for x, y in pairwise(values)} <= {step}


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_politely(text: str) -> None:
    for field in ("steps", "cfg_scale", "prompt"):
        try:
            values = parse_values(field, text)
        except InvalidInput as refused:
            values = [refused.remedy]
        assert values[0] is not None


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("Hires steps", "hires_steps"),
        ("Hires upscaler", "hires_upscaler"),
        ("Hires sampler", "hires_sampler"),
        ("Denoising", "denoising_strength"),
        ("Extra noise", "extra_noise"),
        ("CFG Scale", "cfg_scale"),
        ("Prompt  S/R", "prompt_sr"),
        ("steps", "steps"),
        ("nonsense", "nonsense"),
    ],
)
def test_axes_go_by_webui_s_names_too(written: str, field: str) -> None:
    assert by_field({written: "1"}) == {field: "1"}


def test_every_name_of_webui_is_that_of_an_axis() -> None:
    assert {*LABELS.values()} <= AXIS_FIELDS


def test_two_axes_of_one_field_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'Denoising' varies denoising_strength"):
        by_field({"denoising_strength": "1", "Denoising": "0.5"})
