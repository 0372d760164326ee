"""Settings of guidance and of reading prompts: when there is guidance, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest, freeze
from farm.spec.guidance import GuidanceOptions
from farm.spec.job import JobSpec
from farm.spec.problems import validated

VALUES = {"checkpoint": "demo", "width": 64, "height": 64, "seed": 1}
DEFAULTS = {"demo": {"width": 64, "height": 64}}


@pytest.mark.parametrize(
    ("options", "guided"),
    [
        ({}, "++++++++++"),
        ({"s_min_uncond": 5}, "+++++++-+-"),
        ({"s_min_uncond": 5, "s_min_uncond_all": True}, "++++++----"),
        ({"s_min_uncond_all": True}, "++++++++++"),
        ({"skip_early_cond": 0.2}, "---+++++++"),
        ({"skip_early_cond": 0.25}, "---+++++++"),
        ({"skip_early_cond": 1}, "----------"),
        ({"guidance_start": 0.2}, "--++++++++"),
        ({"guidance_end": 0.2}, "++--------"),
        ({"guidance_start": 0.15, "guidance_end": 0.55}, "--++++----"),
        ({"guidance_start": 0.5, "skip_early_cond": 0.7}, "--------++"),
    ],
    ids=str,
)
def test_when_there_is_guidance(options: dict[str, Any], guided: str) -> None:
    found = GuidanceOptions(**options)
    calls = ["+" if found.guides(call, 10, 10.5 - call) else "-" for call in range(10)]
    assert "".join(calls) == guided


def test_calls_beyond_those_that_were_counted_are_guided_to_the_end() -> None:
    assert GuidanceOptions().guides(12, 10, 1.0)
    assert not GuidanceOptions(guidance_end=0.9).guides(12, 10, 1.0)


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({}, True),
        ({"cfg_scale": 1}, False),
        ({"cfg_scale": 0}, True),
        ({"cfg_scale": 1, "sampler": "Euler a CFG++"}, True),
        ({"cfg_scale": 1, "prompt": "a AND b"}, True),
        ({"cfg_scale": 1, "prompt": "a :0.1 AND b :0.2 AND c :0.7"}, False),
        ({"cfg_scale": 0.5, "prompt": "a AND b"}, False),
        ({"cfg_scale": 1, "prompt": "a :2<lora:x> AND b :-1"}, False),
    ],
    ids=str,
)
def test_whether_the_negative_prompt_has_an_effect(fields: dict[str, Any], guided: bool) -> None:
    assert JobSpec.model_validate({**VALUES, **fields}).passes[0].guided == guided


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"steps": 10}, 20),
        ({"steps": 10, "cfg_scale": 1}, 10),
        ({"steps": 10, "sampler": "Heun"}, 40),
        ({"steps": 10, "prompt": "a AND b AND c"}, 40),
        ({"steps": 10, "guidance_end": 0.5}, 15),
        ({"steps": 10, "skip_early_cond": 1}, 10),
        ({"steps": 10, "s_min_uncond": 15}, 20),
    ],
    ids=str,
)
def test_how_many_rows_a_job_is_in_all(fields: dict[str, Any], rows: int) -> None:
    assert JobSpec.model_validate({**VALUES, **fields}).passes[0].rows == rows


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"clip_skip": 0}, "clip_skip", "Use 1 or more."),
        ({"clip_skip": 13}, "clip_skip", "Use 12 or less."),
        ({"emphasis": "Loud"}, "emphasis", "Use 'Original', 'No norm', 'Ignore' or 'None'."),
        ({"s_min_uncond": 16}, "s_min_uncond", "Use 15.0 or less."),
        ({"s_min_uncond": float("nan")}, "s_min_uncond", "finite"),
        ({"skip_early_cond": 1.5}, "skip_early_cond", "Use 1.0 or less."),
        ({"cfg_rescale": -0.1}, "cfg_rescale", "Use 0.0 or more."),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "guidance_start", "is not below"),
        ({"prompt": "(a:2000)"}, "prompt", "multiply to a weight of 2000"),
        ({"negative_prompt": "(a:2000)"}, "negative_prompt", "multiply to a weight of 2000"),
        ({"prompt": "a :1e9 AND b :5000"}, "prompt", "weight 5000"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        validated(JobSpec, {**VALUES, **fields})
    assert refused.value.field == field
    assert says in str(refused.value)
    with pytest.raises(InvalidInput) as refused:
        freeze(validated(BatchRequest, {"checkpoint": "demo", **fields}), DEFAULTS)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("axes", "field"),
    [
        ({"guidance_start": "0-1 (+0.5)"}, "axes.guidance_start[2]"),
        ({"guidance_start": [0.1, 0.3], "guidance_end": [0.5, 0.2]}, "axes"),
        ({"clip_skip": "1-13"}, "axes.clip_skip[12]"),
        ({"emphasis": "Original, Loud"}, "axes.emphasis[1]"),
        ({"prompt": "a, (b:2000)"}, "axes.prompt[1]"),
    ],
    ids=str,
)
def test_an_axis_is_refused_before_the_batch_is_accepted(axes: dict[str, Any], field: str) -> None:
    request = validated(BatchRequest, {"checkpoint": "demo", "axes": axes})
    with pytest.raises(InvalidInput) as refused:
        freeze(request, DEFAULTS)
    assert refused.value.field == field


def test_axes_over_guidance() -> None:
    axes = {
        "clip_skip": "1, 2",
        "emphasis": "Original, no norm",
        "cfg_rescale": "0-0.7 [2]",
        "s_min_uncond_all": "false, true",
        "guidance_end": [0.5, 1.0],
    }
    batch = freeze(validated(BatchRequest, {"checkpoint": "demo", "axes": axes}), DEFAULTS)
    jobs = [batch.job(ord) for ord in range(batch.total)]
    assert len(set(jobs)) == 32
    last = jobs[-1]
    assert (last.clip_skip, last.emphasis, last.cfg_rescale) == (2, "No norm", 0.7)
    assert (last.s_min_uncond_all, last.guidance_end) == (True, 1.0)
