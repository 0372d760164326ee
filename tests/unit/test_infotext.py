from __future__ import annotations

import json
from typing import Any

import pytest

from farm.spec.infotext import infotext
from farm.spec.job import JobSpec

JOB = JobSpec(checkpoint="demo", prompt="a red apple", width=128, height=64, seed=5, cfg_scale=3)


@pytest.mark.parametrize("odd", ['"a"', " a", "a "])
def test_a_value_that_would_be_read_as_another_is_quoted(odd: str) -> None:
    assert infotext(JOB, {"Note": odd}).endswith(f"Note: {json.dumps(odd)}")


def test_the_layout_is_webuis() -> None:
    assert infotext(JOB) == (
        "a red apple\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 128x64, Model: demo, RNG: CPU"
    )


def test_a_negative_prompt_has_its_line() -> None:
    text = infotext(JOB.model_copy(update={"negative_prompt": "blurry"}))
    assert text.splitlines()[1] == "Negative prompt: blurry"


def test_values_with_commas_or_colons_are_quoted() -> None:
    assert infotext(JOB, {"Note": 'a, "b": c', "None": None}).endswith(r'Note: "a, \"b\": c"')


USUAL = "Steps: 20, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 128x64, Model: demo, RNG: CPU"


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"scheduler": "SGM Uniform"}, "Schedule type: sgm_uniform"),
        (
            {"scheduler": "karras", "sigma_min": 0.1, "sigma_max": 10, "rho": 5},
            "Schedule type: karras, Schedule min sigma: 0.1, Schedule max sigma: 10, "
            "Schedule rho: 5",
        ),
        ({"eta": 0.5}, "Eta: 0.5"),
        ({"sampler": "ddim", "eta": 0.5}, "Eta DDIM: 0.5"),
        (
            {"sampler": "Heun", "s_churn": 5, "s_tmin": 0.1, "s_tmax": 20, "s_noise": 1.01},
            "Sigma churn: 5, Sigma tmin: 0.1, Sigma tmax: 20, Sigma noise: 1.01",
        ),
        (
            {"zero_terminal_snr": True, "discard_penultimate": True, "sgm_noise_multiplier": True},
            "Noise Schedule: Zero Terminal SNR, Discard penultimate sigma: True, "
            "SGM noise multiplier: True",
        ),
        # What has no effect is not written.
        ({"eta": 1.0}, ""),
        ({"s_churn": 5, "s_noise": 1.01, "variation_seed": 3}, ""),
        ({"sampler": "Euler", "eta": 0.5}, ""),
    ],
)
def test_settings_of_the_sampler_follow_in_webui_s_words(
    settings: dict[str, Any], written: str
) -> None:
    job = JobSpec.model_validate(JOB.model_dump() | settings)
    expected = USUAL.replace("Euler a", job.sampler) + (f", {written}" if written else "")
    assert infotext(job).splitlines()[1] == expected


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"s_min_uncond": 2.5}, "NGMS: 2.5"),
        ({"s_min_uncond": 2, "s_min_uncond_all": True}, "NGMS: 2, NGMS all steps: True"),
        ({"s_min_uncond_all": True}, ""),
        ({"skip_early_cond": 0.1, "cfg_rescale": 0.7}, "Skip Early CFG: 0.1, CFG Rescale: 0.7"),
        ({"guidance_start": 0.1}, "Guidance interval: 0.1-1"),
        ({"guidance_end": 0.8}, "Guidance interval: 0-0.8"),
        ({"prompt": "a (red) apple", "emphasis": "no norm"}, "Emphasis: No norm"),
        ({"negative_prompt": "[fog]", "emphasis": "Ignore"}, "Emphasis: Ignore"),
        ({"emphasis": "Ignore"}, ""),
        ({"cfg_scale": 1, "cfg_rescale": 0.7, "s_min_uncond": 2}, ""),
    ],
)
def test_settings_of_guidance_come_last(settings: dict[str, Any], written: str) -> None:
    job = JobSpec.model_validate(JOB.model_dump() | settings)
    usual = USUAL.replace("CFG scale: 3", f"CFG scale: {job.cfg_scale:g}")
    assert infotext(job).splitlines()[-1] == usual + (f", {written}" if written else "")


def test_clip_skip_stands_where_webui_has_it() -> None:
    job = JOB.model_copy(update={"clip_skip": 2})
    assert "Model: demo, Clip skip: 2, RNG: CPU" in infotext(job)


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        (
            {"variation_seed": 7, "variation_strength": 0.25},
            "Variation seed: 7, Variation seed strength: 0.25, RNG: CPU",
        ),
        (
            {"seed_resize_from_width": 512, "seed_resize_from_height": 640},
            "Seed resize from: 512x640, RNG: CPU",
        ),
        ({"eta_noise_seed_delta": 31337, "rng": "NV"}, "ENSD: 31337, RNG: NV"),
    ],
)
def test_settings_of_the_noise_come_before_the_sampler_s(
    settings: dict[str, Any], written: str
) -> None:
    job = JobSpec.model_validate(JOB.model_dump() | settings)
    assert infotext(job).splitlines()[1] == USUAL.replace("RNG: CPU", written)


HIRES = "Denoising strength: 0.7, RNG: CPU, Hires upscale: 2, Hires upscaler: Latent"


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"hires_scale": 2}, HIRES),
        ({"hires_scale": 1.0, "hires_steps": 5, "extra_noise": 0.5}, "RNG: CPU"),
        (
            {"hires_scale": 2, "hires_width": 256, "denoising_strength": 1 / 3},
            "Denoising strength: 0.3333333333333333, RNG: CPU, Hires resize: 256x0, "
            "Hires upscaler: Latent",
        ),
        # What is said and the same is not written.
        ({"hires_scale": 2, "hires_sampler": "Euler a", "hires_prompt": "a red apple"}, HIRES),
        (
            {
                "hires_scale": 2,
                "hires_checkpoint": "other",
                "hires_sampler": "Euler",
                "hires_prompt": "a lion, (big:1.2)",
                "hires_negative_prompt": "fog",
                "hires_steps": 12,
                "hires_upscaler": "lanczos",
                "hires_cfg_scale": 5,
                "extra_noise": 0.05,
            },
            "Denoising strength: 0.7, RNG: CPU, Hires checkpoint: other, Hires sampler: Euler, "
            'Hires prompt: "a lion, (big:1.2)", Hires negative prompt: fog, Hires upscale: 2, '
            "Hires steps: 12, Hires upscaler: Lanczos, Hires CFG Scale: 5, Extra noise: 0.05",
        ),
        # What has an effect in the second pass alone is written too.
        (
            {
                "hires_scale": 2,
                "hires_sampler": "Euler",
                "hires_prompt": "(big)",
                "s_churn": 5,
                "s_noise": 1.01,
                "emphasis": "None",
            },
            HIRES.replace("Hires up", "Hires sampler: Euler, Hires prompt: (big), Hires up", 1)
            + ", Sigma churn: 5, Sigma noise: 1.01, Emphasis: None",
        ),
        (
            {"sampler": "Euler", "hires_scale": 2, "hires_sampler": "DDIM", "eta": 0.5},
            HIRES.replace("Hires up", "Hires sampler: DDIM, Hires up", 1) + ", Eta DDIM: 0.5",
        ),
    ],
)
def test_a_second_pass_is_told_in_webui_s_words(settings: dict[str, Any], written: str) -> None:
    job = JobSpec.model_validate(JOB.model_dump() | settings)
    usual = USUAL.replace("Euler a", job.sampler)
    assert infotext(job).splitlines()[1] == usual.replace("RNG: CPU", written)
