"""What a second pass is: sizes as webui has them, what it takes of the first, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.cost import PIXELS, units
from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest, BatchSpec, freeze
from farm.spec.cells import extreme_sizes, largest
from farm.spec.hires import UPSCALERS, HiresOptions, Target
from farm.spec.job import JobSpec
from farm.spec.listing import freeze_listed
from farm.spec.problems import validated
from farm.spec.strength import Taken

DEFAULTS = {"demo": {"width": 128, "height": 128}, "big": {"width": 512, "height": 512}}
VALUES = {"checkpoint": "demo", "width": 512, "height": 512, "seed": 1}


def job(**fields: Any) -> JobSpec:
    return validated(JobSpec, {**VALUES, **fields})


def frozen(**fields: Any) -> BatchSpec:
    request = validated(BatchRequest, {"checkpoint": "demo", "seed": 1, **fields})
    return freeze(request, DEFAULTS)


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        ((512, 512), {"hires_scale": 2}, Target(1024, 1024, 1024, 1024, 0, 0)),
        # int(512 * 1.1) is 563, of which a latent has 70 places
        ((512, 768), {"hires_scale": 1.1}, Target(560, 840, 563, 844, 0, 0)),
        ((512, 768), {"hires_width": 768}, Target(768, 1152, 768, 1152, 0, 0)),
        ((512, 768), {"hires_height": 1024}, Target(680, 1024, 682, 1024, 0, 0)),
        # both: the shape is kept, all is filled, what stands out is cut off at both ends
        ((512, 512), {"hires_width": 1024, "hires_height": 768}, (1024, 768, 1024, 1024, 0, 16)),
        ((512, 512), {"hires_width": 768, "hires_height": 1000}, (768, 1000, 1000, 1000, 14, 0)),
        ((768, 512), {"hires_width": 1152, "hires_height": 768}, (1152, 768, 1152, 768, 0, 0)),
        (
            (512, 512),
            {"hires_width": 64, "hires_height": 72, "hires_scale": 4},
            (64, 72, 72, 72, 0, 0),
        ),
        ((512, 512), {"hires_width": 512}, (512, 512, 512, 512, 0, 0)),
        ((512, 512), {"hires_steps": 9, "denoising_strength": 0.2}, None),
    ],
)
def test_the_size_is_webui_s(
    size: tuple[int, int], fields: dict[str, Any], expected: tuple[int, ...] | None
) -> None:
    target = HiresOptions(**fields).enlarged(*size)
    assert target == (None if expected is None else Target(*expected))


def test_two_passes_are_what_they_cost() -> None:
    spec = job(hires_scale=2, steps=20, sampler="Euler", hires_steps=10)
    first, second = spec.passes
    assert (first.pixels, second.pixels, spec.size) == (512**2, 1024**2, (1024, 1024))
    assert second.taken == Taken(14, 4)  # int(10 / 0.7), and its last ten
    assert [first.steps, second.steps] == [20, 10]
    assert units(spec) == (2 * 20 * 512**2 + 2 * 10 * 1024**2) / PIXELS
    assert units(job(steps=20)) == 2 * 20


def test_a_second_pass_of_strength_0_is_none() -> None:
    spec = job(hires_scale=2, denoising_strength=0, hires_checkpoint="big")
    assert len(spec.passes) == 1
    assert spec.size == (1024, 1024)
    assert spec.checkpoints == ("demo",)
    assert spec.largest == {"demo": 1024**2}


def test_what_is_not_said_is_as_in_the_first_pass() -> None:
    same = job(hires_width=768, prompt="a cat", negative_prompt="fog", sampler="Heun").passes[1]
    assert (same.checkpoint, same.prompt, same.negative_prompt) == ("demo", "a cat", "fog")
    assert (same.sampler, same.steps, same.cfg_scale) == ("Heun", 20, 7.0)
    own = job(
        hires_width=768,
        hires_checkpoint="big",
        hires_prompt="a lion",
        hires_negative_prompt="dark",
        hires_sampler="k_dpmpp_2m",
        hires_cfg_scale=1,
    )
    second = own.passes[1]
    assert (second.checkpoint, second.prompt, second.negative_prompt) == ("big", "a lion", "dark")
    assert (second.sampler, second.guided) == ("DPM++ 2M", False)
    assert own.checkpoints == ("demo", "big")
    assert own.largest == {"demo": 512**2, "big": 768**2}


def test_prompt_editing_goes_on_where_the_first_pass_ended() -> None:
    line = job(hires_scale=2, steps=20, sampler="Heun", hires_sampler="Euler", hires_steps=8)
    timeline = line.passes[1].timeline
    assert (timeline.steps, timeline.before) == (8, 40)
    assert [timeline.last(when) for when in ("1.5", "0.5", "44")] == [4, 0, 4]


@pytest.mark.parametrize(
    ("fields", "field", "remedy"),
    [
        ({"hires_scale": 5}, "hires_scale", "Use 4"),
        ({"hires_scale": 0.5}, "hires_scale", "Use 1"),
        ({"width": 2048, "height": 1024, "hires_scale": 3}, "hires_scale", "Use 2 or less"),
        ({"width": 1000, "height": 1000, "hires_scale": 4.0}, None, None),
        ({"width": 4096, "height": 2048, "hires_scale": 1.5}, "hires_scale", "Use 1 or less"),
        ({"hires_width": 100}, "hires_width", "Use a multiple of 8, for example 96."),
        ({"hires_height": 4104}, "hires_height", "Use 4096 or less."),
        ({"width": 1024, "hires_width": 512, "hires_height": 4096}, "hires_width", "Ask for anoth"),
        ({"height": 64, "hires_width": 128}, "hires_width", "Ask for another size"),
        ({"hires_upscaler": " "}, "hires_upscaler", "Choose one of Latent, Latent (anti"),
        ({"hires_upscaler": "x" * 201}, "hires_upscaler", "Choose one of Latent, Latent (anti"),
        ({"hires_upscaler": "4x-UltraSharp"}, None, None),
        ({"hires_upscaler": "latent  (NEAREST)"}, None, None),
        ({"hires_sampler": "Ruler"}, "hires_sampler", "Choose one of"),
        ({"hires_sampler": "Use same sampler", "hires_checkpoint": "Use same checkpoint"}, None, 0),
        ({"hires_steps": 151}, "hires_steps", "Use 150 or less."),
        ({"hires_steps": 2.5}, "hires_steps", "Use a whole number."),
        ({"denoising_strength": 1.01}, "denoising_strength", "Use 1"),
        ({"denoising_strength": float("nan")}, "denoising_strength", "Use a finite number."),
        ({"extra_noise": -0.1}, "extra_noise", "Use 0"),
        ({"hires_cfg_scale": 31}, "hires_cfg_scale", "Use 30"),
        ({"hires_prompt": "(a:5000)"}, "hires_prompt", ""),
        ({"hires_prompt": "<lora:x"}, "hires_prompt", "Close it"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], field: str | None, remedy: str) -> None:
    if field is None:
        job(**fields)
        return
    with pytest.raises(InvalidInput) as refused:
        job(**fields)
    assert refused.value.field == field
    assert (refused.value.remedy or "").startswith(remedy)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("4x-UltraSharp", "4x-UltraSharp"),
        ("r-esrgan 4X+", "R-ESRGAN 4x+"),
        ("RealESRGAN_x4plus", "R-ESRGAN 4x+"),
        ("RealESRGAN_x4plus_anime_6B", "R-ESRGAN 4x+ Anime6B"),
    ],
)
def test_models_go_by_their_files_or_as_webui_calls_them(written: str, name: str) -> None:
    assert job(hires_upscaler=written).hires_upscaler == name


def test_upscalers_are_webui_s_own() -> None:
    assert {job(hires_upscaler=name.upper()).hires_upscaler for name in UPSCALERS} == {*UPSCALERS}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"denoising_strength": 0.4}, "denoising_strength"),
        ({"axes": {"denoising_strength": "0.4, 0.5"}}, "axes.denoising_strength"),
        ({"hires_scale": 1, "hires_steps": 9}, "hires_steps"),
        ({"jobs": [{}, {"hires_prompt": "a lion"}]}, "jobs[1].hires_prompt"),
        ({"jobs": [{}], "extra_noise": 0.1}, "extra_noise"),
        # One that has a second pass is enough, and so is what would be so without it.
        ({"denoising_strength": 0.4, "axes": {"hires_scale": "1, 2"}}, None),
        ({"denoising_strength": 0.4, "jobs": [{}, {"hires_width": 256}]}, None),
        ({"denoising_strength": 0.7, "hires_steps": 0}, None),
        ({"jobs": [job().model_dump(mode="json")]}, None),
    ],
)
def test_what_is_said_in_vain_of_a_second_pass_is_refused(
    fields: dict[str, Any], field: str | None
) -> None:
    request = validated(BatchRequest, {"checkpoint": "demo", **fields})
    freeze_any = freeze_listed if request.jobs else freeze
    if field is None:
        freeze_any(request, DEFAULTS)
        return
    with pytest.raises(InvalidInput) as refused:
        freeze_any(request, DEFAULTS)
    assert refused.value.field == field
    assert "Ask for one, such as with hires_scale 2" in str(refused.value)


def test_axes_vary_the_second_pass() -> None:
    spec = frozen(
        hires_scale=2,
        hires_checkpoint="big.safetensors",
        axes={"denoising_strength": "0.3-0.5 (+0.1)", "hires_upscaler": "Latent, Lanczos"},
    )
    jobs = [spec.job(ord) for ord in range(spec.total)]
    assert [each.denoising_strength for each in jobs[::2]] == [0.3, 0.4, 0.5]
    assert jobs[1].hires_upscaler == "Lanczos"
    assert {each.checkpoints for each in jobs} == {("demo", "big")}


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"width": [512, 2048], "hires_scale": [1, 3]}, "hires_scale: 2048x1024"),
        ({"width": [512, 4096], "hires_height": [0, 128, 2048]}, "hires_height: 4096x1024"),
        ({"hires_checkpoint": ["", "small"]}, "hires_checkpoint[1]: 'small' is not known"),
        ({"hires_upscaler": ["Latent", ""]}, "hires_upscaler[1]: There is no upscaler ''"),
    ],
)
def test_cells_that_cannot_be_are_found_without_making_all(axes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        frozen(width=512, height=1024, axes=axes)
    assert told in str(refused.value)


def test_another_checkpoint_of_a_listed_job_must_be_known() -> None:
    listed = {"hires_scale": 2, "jobs": [{"seed": 1, "hires_checkpoint": "huge"}]}
    request = validated(BatchRequest, {"checkpoint": "demo", **listed})
    with pytest.raises(InvalidInput, match=r"jobs\[0\].hires_checkpoint: 'huge' is not known"):
        freeze_listed(request, DEFAULTS)


SIDES = st.sampled_from([0, 64, 128, 200, 512, 1000, 2048])
REAL = st.sampled_from([64, 128, 200, 512, 1000, 2048])


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=1, max_size=3).map(tuple)


@given(
    st.fixed_dictionaries(
        {
            "width": some(REAL),
            "height": some(REAL),
            "hires_scale": some(st.sampled_from([1.0, 1.3, 2.0, 4.0])),
            "hires_width": some(SIDES),
            "hires_height": some(SIDES),
        }
    )
)
def test_no_cell_is_larger_than_those_in_the_corners(axes: dict[str, tuple[Any, ...]]) -> None:
    spec = BatchSpec(VALUES, tuple(axes.items()))
    most = largest(VALUES, axes, "demo")["demo"]
    corners = [stretched(cell) for cell in extreme_sizes(VALUES, axes)]
    for ord in range(spec.total):
        cell = {**VALUES, **dict(zip(axes, values_of(spec, ord), strict=True))}
        size, (across, down) = stretched(cell)
        assert size[0] * size[1] <= most
        assert across * down <= max(a * d for _, (a, d) in corners)
        assert max(across, down) <= max(max(each) for _, each in corners)
        assert min(size) >= min(min(each) for each, _ in corners)


def values_of(spec: BatchSpec, ord: int) -> list[Any]:
    places = spec.coordinates(ord)
    return [values[place] for (_, values), place in zip(spec.axes, places, strict=True)]


def stretched(cell: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of its image, and what that is cut out of."""
    hires = {name: value for name, value in cell.items() if name.startswith("hires_")}
    target = HiresOptions(**hires).enlarged(cell["width"], cell["height"])
    size = (cell["width"], cell["height"])
    return (target[:2], target[2:4]) if target else (size, size)  # type: ignore[return-value]
