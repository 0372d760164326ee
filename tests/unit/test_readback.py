"""What infotext says is what made the image: it is read back as the same job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec.guidance import GuidanceOptions
from farm.spec.hires import UPSCALERS
from farm.spec.infotext import infotext
from farm.spec.job import JobSpec
from farm.spec.passes import Pass
from farm.spec.readback import fields, read
from farm.spec.samplers import SAMPLERS, SCHEDULERS

TEXT = st.text(st.sampled_from('abc ,:"#\n’é'), max_size=12).map(
    lambda text: "\n".join(line.strip() for line in text.splitlines()).strip()
)
SHARE = st.floats(0, 1, width=16)
JOBS = st.fixed_dictionaries(
    {
        "checkpoint": st.sampled_from(["demo", "folder/a, b"]),
        "prompt": TEXT,
        "width": st.sampled_from([64, 128]),
        "height": st.sampled_from([64, 136]),
        "seed": st.integers(0, 2**63 - 1),
    },
    optional={
        "negative_prompt": TEXT,
        "steps": st.integers(1, 150),
        "sampler": st.sampled_from(sorted(SAMPLERS)),
        "cfg_scale": st.floats(0, 30),
        "clip_skip": st.integers(1, 12),
        "rng": st.sampled_from(["CPU", "NV"]),
        "scheduler": st.sampled_from(sorted(SCHEDULERS)),
        "variation_strength": SHARE,
        "variation_seed": st.integers(0, 2**40),
        "eta_noise_seed_delta": st.integers(-9, 31337),
        "sigma_min": st.floats(0.01, 0.9),
        "rho": st.floats(1, 9),
        "discard_penultimate": st.booleans(),
        "zero_terminal_snr": st.booleans(),
        "guidance_start": st.floats(0, 0.49),
        "guidance_end": st.floats(0.5, 1),
        "hires_scale": st.floats(1, 4),
        "hires_width": st.sampled_from([0, 256]),
        "hires_height": st.sampled_from([0, 264]),
        "hires_upscaler": st.sampled_from([*UPSCALERS, "R-ESRGAN 4x+", "4x-UltraSharp"]),
        "hires_steps": st.integers(0, 150),
        "hires_sampler": st.sampled_from(["", *SAMPLERS]),
        "hires_checkpoint": st.sampled_from(["", "other [0123456789]"]),
        "hires_prompt": TEXT,
        "hires_negative_prompt": TEXT,
        "hires_cfg_scale": st.none() | st.floats(0, 30),
        "denoising_strength": SHARE,
        "extra_noise": SHARE,
    },
)


@settings(max_examples=60)
@given(JOBS)
def test_a_job_is_read_back_as_what_it_was(values: dict[str, Any]) -> None:
    job = JobSpec.model_validate(values)
    text = infotext(job, {"Model hash": "0123456789", "Version": "farm 1", "Farm bucket": "2/4"})
    again = JobSpec.model_validate(fields(text))
    assert infotext(again) == infotext(job)
    assert [with_effect(each) for each in again.passes] == [with_effect(e) for e in job.passes]
    assert (again.target, again.sampling.rho) == (job.target, job.sampling.rho)
    if job.variation_strength:
        assert again.noise == job.noise


def with_effect(own: Pass) -> Pass:
    """What has no effect is not written."""
    return own if own.guided else replace(own, guidance=GuidanceOptions())


WEBUI = """masterpiece, a castle
on a hill
Negative prompt: fog
dark
Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.0, Seed: 7, Size: 512x768, Model hash: 31e35c80fc, Model: anime, Denoising strength: 0.45, Clip skip: 2, Hires prompt: "a castle, (stone:1.2)", Hires upscale: 1.5, Hires steps: 15, Hires upscaler: Latent (nearest-exact), Lora hashes: "ink: 0123456789ab", Version: v1.8.0"""  # noqa: E501


def test_webui_s_own_is_read() -> None:
    assert fields(WEBUI) == {
        "prompt": "masterpiece, a castle\non a hill",
        "negative_prompt": "fog\ndark",
        "rng": "NV",
        "steps": 30,
        "sampler": "DPM++ 2M Karras",
        "cfg_scale": 7.0,
        "seed": 7,
        "width": 512,
        "height": 768,
        "checkpoint": "anime",
        "denoising_strength": 0.45,
        "clip_skip": 2,
        "hires_prompt": "a castle, (stone:1.2)",
        "hires_scale": 1.5,
        "hires_steps": 15,
        "hires_upscaler": "Latent (nearest-exact)",
    }


@pytest.mark.parametrize(
    ("text", "prompt", "parameters"),
    [
        ("a cat", "a cat", {}),
        ("a cat, time: 5", "a cat, time: 5", {}),
        ("Steps: 5, Sampler: Euler, Seed: 1", "", {"Steps": "5", "Sampler": "Euler", "Seed": "1"}),
        ('a: 1, b: "x, y: z", a: 2', "", {"a": "2", "b": "x, y: z"}),
        ('a: 1, b: "unclosed, c: 2', "", {"a": "1", "b": '"unclosed', "c": "2"}),
        ('a: "b" c, d: , e: 5', "", {"a": '"b" c', "d": "", "e": "5"}),
        ("a : 1, b c\t: 2, d: 3", "", {"a": "1", "b c": "2", "d": "3"}),
        pytest.param("a" + " " * 200_000 + "b", "a" + " " * 200_000 + "b", {}, id="much space"),
        ("", "", {}),
    ],
)
def test_the_last_line_is_parameters_if_it_looks_like_them(
    text: str, prompt: str, parameters: dict[str, str]
) -> None:
    found = read(text)
    assert (found.prompt, found.parameters) == (prompt, parameters)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a cat", "no generation parameters"),
        ("Steps: many, Sampler: Euler, Seed: 1", "Steps: 'many' cannot be understood"),
        ("Steps: 5, Size: 5, Seed: 1", "Size: '5' cannot be understood"),
        ("Steps: 5, Guidance interval: 1, Seed: 1", "Guidance interval: '1'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as refused:
        fields(text)
    assert refused.value.field == "infotext"
    assert refused.value.remedy
