from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest, BatchSpec, freeze
from farm.spec.checkpoints import meant_checkpoint
from farm.spec.listing import freeze_listed
from farm.spec.problems import validated

DEFAULTS = {
    "demo": {"width": 128, "height": 128, "cfg_scale": 3.0, "steps": 20},
    "big": {"width": 1024, "height": 1024, "cfg_scale": 7.0},
}


def frozen(**fields: Any) -> BatchSpec:
    request = validated(BatchRequest, {"checkpoint": "demo", "prompt": "a red apple", **fields})
    return freeze(request, DEFAULTS)


def test_fields_left_out_take_the_checkpoints_defaults() -> None:
    job = frozen(seed=5).job(0)
    assert (job.width, job.height, job.cfg_scale, job.steps) == (128, 128, 3.0, 20)
    assert (job.sampler, job.negative_prompt, job.seed) == ("Euler a", "", 5)


def test_a_given_field_wins_over_the_default() -> None:
    assert frozen(width=64, cfg_scale=1).job(0).width == 64


def test_images_of_a_cell_have_seeds_in_a_row() -> None:
    assert [frozen(seed=7, count=3).job(ord).seed for ord in range(3)] == [7, 8, 9]


def test_a_random_seed_is_drawn_once_and_stored() -> None:
    spec = frozen(seed=-1, count=2)
    first, second = spec.job(0).seed, spec.job(1).seed
    assert second == first + 1
    assert BatchSpec.restored(spec.stored()).job(0).seed == first


def test_the_last_axis_runs_fastest_and_the_checkpoint_slowest() -> None:
    axes = {"steps": [5, 6], "checkpoint": ["demo", "big"], "cfg_scale": [1, 2]}
    spec = frozen(axes=axes, count=2, seed=0)
    cells = [(job.checkpoint, job.steps, job.cfg_scale) for job in map(spec.job, range(0, 16, 2))]
    assert cells == list(product(["demo", "big"], [5, 6], [1.0, 2.0]))
    assert spec.checkpoint_run(0) == ("demo", 8)
    assert spec.checkpoint_run(9) == ("big", 16)


def test_search_and_replace_reaches_both_prompts() -> None:
    spec = frozen(negative_prompt="red noise", axes={"prompt_sr": "red, blue"})
    assert [spec.job(0).prompt, spec.job(1).prompt] == ["a red apple", "a blue apple"]
    assert spec.job(1).negative_prompt == "blue noise"


@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=5),
    st.lists(st.sampled_from(["Euler", "Euler a"]), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**40),
)
def test_a_stored_batch_gives_the_same_jobs(
    steps: list[int], samplers: list[str], count: int, seed: int
) -> None:
    spec = frozen(axes={"steps": steps, "sampler": samplers}, count=count, seed=seed)
    again = BatchSpec.restored(json.loads(json.dumps(spec.stored())))
    jobs = [spec.job(ord) for ord in range(spec.total)]
    assert jobs == [again.job(ord) for ord in range(again.total)]
    assert len(jobs) == len(steps) * len(samplers) * count
    assert {job.steps for job in jobs} == set(steps)


def test_there_is_no_job_past_the_end() -> None:
    with pytest.raises(IndexError):
        frozen(count=2).job(2)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"checkpoint": "nope"}, "checkpoint"),
        ({"width": 130}, "width"),
        ({"width": 8}, "width"),
        ({"height": 100_000}, "height"),
        ({"width": 4096, "height": 4096 + 8}, "height"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"sampler": "Eulr"}, "sampler"),
        ({"cfg_scale": 1e6}, "cfg_scale"),
        ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"prompt": "x" * 10_000_000}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"seed": -2}, "seed"),
        ({"count": 0}, "count"),
        ({"priority": 101}, "priority"),
        ({"tags": ["Red"]}, "tags"),
        ({"tags": ["a" * 41]}, "tags"),
        ({"tags": [str(number) for number in range(17)]}, "tags"),
        ({"priority": "high"}, "priority"),
        ({"stepz": 3}, "stepz"),
        ({"axes": {"steps": [20, 0]}}, "axes.steps[1]"),
        ({"axes": {"steps": [0, 20]}}, "axes.steps[0]"),
        ({"axes": {"sampler": ["Euler", "x"]}}, "axes.sampler[1]"),
        ({"axes": {"prompt_sr": ["zebra", "b"]}}, "axes.prompt_sr[1]"),
        ({"axes": {"width": [4096], "height": [64, 4096], "x": [1]}}, "axes.x"),
        ({"axes": {"steps": "1-100", "seed": "1-10000", "cfg_scale": "1-20"}}, "axes"),
    ],
)
def test_bad_input_names_its_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        frozen(**fields)
    assert raised.value.field is not None
    assert raised.value.field.startswith(where.partition("[")[0])
    assert len(str(raised.value)) < 1000


def test_listed_jobs_override_what_stands_above_them() -> None:
    request = BatchRequest(
        checkpoint="demo", steps=5, seed=1, jobs=[{"prompt": "a"}, {"prompt": "b", "steps": 6}]
    )
    assert [(job.prompt, job.steps) for job in freeze_listed(request, DEFAULTS)] == [
        ("a", 5),
        ("b", 6),
    ]


@pytest.mark.parametrize(
    ("jobs", "where"), [([{}, {"steps": 0}], "jobs[1].steps"), ([{"stepz": 1}], "jobs[0].stepz")]
)
def test_a_wrong_listed_job_is_named(jobs: list[dict[str, Any]], where: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        freeze_listed(BatchRequest(checkpoint="demo", jobs=jobs), DEFAULTS)
    assert raised.value.field == where


def test_the_only_checkpoint_need_not_be_named() -> None:
    only = {"demo": DEFAULTS["demo"]}
    assert freeze(BatchRequest(prompt="p"), only).job(0).checkpoint == "demo"
    with pytest.raises(InvalidInput, match="Known checkpoints: big, demo"):
        freeze(BatchRequest(prompt="p"), DEFAULTS)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("demo", "demo"),
        ("demo.safetensors", "demo"),
        ("demo.safetensors [31e35c80fc]", "demo"),
        ("anime/v3 [31e35c80fc]", "anime/v3"),
        ("anime\\v3.safetensors", "anime/v3"),
        ("v3", "anime/v3"),
        ("twin", None),
        ("v3 [not a hash]", None),
        ("anime", None),
        ("", None),
    ],
)
def test_a_checkpoint_goes_by_the_names_webui_shows(written: str, meant: str | None) -> None:
    assert meant_checkpoint(written, ["demo", "anime/v3", "a/twin", "b/twin"]) == meant


def test_what_is_stored_is_the_checkpoints_own_name() -> None:
    axes = {"checkpoint": ["big.safetensors", "demo"]}
    stored = freeze(BatchRequest(prompt="p", axes=axes), DEFAULTS)
    assert stored.checkpoints() == ("big", "demo")
    single = freeze(BatchRequest(prompt="p", checkpoint="big.safetensors"), DEFAULTS)
    assert single.job(0).checkpoint == "big"
    with pytest.raises(InvalidInput, match=r"axes.checkpoint\[2\]: 'demo' is value 0 already"):
        freeze(BatchRequest(axes={"checkpoint": ["demo", "big", "demo.safetensors"]}), DEFAULTS)
    with pytest.raises(InvalidInput, match=r"axes.checkpoint\[1\]: 'nope' is not known"):
        freeze(BatchRequest(prompt="p", axes={"checkpoint": ["demo", "nope"]}), DEFAULTS)


def test_with_a_variation_only_the_second_seed_counts_on() -> None:
    spec = frozen(seed=7, variation_seed=20, variation_strength=0.3, count=3)
    jobs = [spec.job(ord) for ord in range(3)]
    assert [(job.seed, job.variation_seed) for job in jobs] == [(7, 20), (7, 21), (7, 22)]


def test_a_variation_seed_is_drawn_only_where_it_is_needed() -> None:
    assert "variation_seed" not in frozen(variation_seed=-1).template
    for fields in ({"variation_strength": 0.3}, {"axes": {"variation_strength": [0, 0.5]}}):
        spec = frozen(count=2, **fields)
        drawn = spec.template["variation_seed"]
        assert 0 <= drawn < 2**32
        assert spec.job(1).variation_seed == drawn + 1


def test_of_the_settings_only_those_given_are_stored() -> None:
    spec = frozen(seed=1, eta=0.5)
    assert set(spec.template) == {
        "checkpoint", "prompt", "negative_prompt", "seed", "eta", "width", "height", "steps",
        "cfg_scale", "strict",
    }  # fmt: skip


def test_settings_of_samplers_and_noise_are_axes() -> None:
    axes = {
        "sampler": "k_euler_a, DPM++ 2M SDE",
        "scheduler": ["Karras", "simple"],
        "eta": "0-1 (+0.5)",
        "discard_penultimate": "true, false",
        "rng": ["CPU", "NV"],
    }
    jobs = [job for spec in [frozen(axes=axes, seed=1)] for job in map(spec.job, range(spec.total))]
    assert len(jobs) == 2 * 2 * 3 * 2 * 2
    assert {job.sampler for job in jobs} == {"Euler a", "DPM++ 2M SDE"}
    assert {job.scheduler for job in jobs} == {"karras", "simple"}
    assert {job.eta for job in jobs} == {0, 0.5, 1}
    assert {job.discard_penultimate for job in jobs} == {True, False}
    assert {job.rng for job in jobs} == {"CPU", "NV"}


@pytest.mark.parametrize(
    ("fields", "where", "remedy"),
    [
        ({"sampler": "Eulr"}, "sampler", "Choose one of DPM++ 2M Karras, "),
        ({"scheduler": "linear"}, "scheduler", "Choose one of automatic, uniform"),
        ({"eta": -1}, "eta", "Use 0"),
        ({"eta": "half"}, "eta", "Use a number."),
        ({"rng": "GPU"}, "rng", "Use 'CPU' or 'NV'."),
        ({"variation_strength": 1.5}, "variation_strength", "Use 1"),
        ({"seed_resize_from_width": 500}, "seed_resize_from_width", "for example 496"),
        ({"seed_resize_from_width": 512}, "seed_resize_from_height", None),
        ({"sigma_min": 10, "sigma_max": 1}, "sigma_min", None),
        ({"sigma_max": 0}, "sigma_max", "Use more than 0."),
        ({"axes": {"eta": ["x"]}}, "axes.eta[0]", "a number"),
        ({"axes": {"rng": ["NV", "GPU"]}}, "axes.rng[1]", "Use 'CPU' or 'NV'."),
        ({"axes": {"zero_terminal_snr": "yes"}}, "axes.zero_terminal_snr[0]", "true or false"),
        ({"axes": {"sigma_min": [0.1, 2], "sigma_max": [5, 1]}}, "axes", "Keep all of sigma_min"),
        ({"seed": 2**63 - 1, "count": 2}, "seed", "Use a smaller seed."),
        ({"axes": {"variation_seed": [2**63 - 1]}, "count": 2, "variation_strength": 1},
         "axes.variation_seed[0]", "Use a smaller variation_seed."),
    ],
)  # fmt: skip
def test_bad_settings_are_named_with_a_remedy(
    fields: dict[str, Any], where: str, remedy: str | None
) -> None:
    with pytest.raises(InvalidInput) as raised:
        frozen(**fields)
    assert raised.value.field == where
    if remedy:
        assert remedy in (raised.value.remedy or "")
