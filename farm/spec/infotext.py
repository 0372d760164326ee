"""Infotext: the generation parameters in the words and order that webui writes into images."""

from __future__ import annotations

import json
from collections.abc import Mapping

from farm.spec.job import JobSpec
from farm.spec.samplers import SAMPLERS
from farm.spec.sampling import SamplingOptions


def infotext(spec: JobSpec, extra: Mapping[str, object] | None = None) -> str:
    """Prompt, negative prompt and ``key: value`` parameters as one text.

    ``extra`` parameters follow the usual ones, or take their place; None values are left out.
    """
    parameters: dict[str, object] = {
        "Steps": spec.steps,
        "Sampler": spec.sampler,
        "CFG scale": _number(spec.cfg_scale),
        "Seed": spec.seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model hash": None,
        "Model": spec.checkpoint,
        "Clip skip": spec.clip_skip if spec.clip_skip > 1 else None,
        **_noise(spec),
        **_hires(spec),
        **_sampling(spec),
        **_guidance(spec),
        **(extra or {}),
    }
    lines = [spec.prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in parameters.items() if v is not None))
    return "\n".join(lines).strip()


def _noise(spec: JobSpec) -> dict[str, object]:
    varied = spec.variation_strength > 0
    width, height = spec.seed_resize_from_width, spec.seed_resize_from_height
    return {
        "Variation seed": spec.variation_seed if varied else None,
        "Variation seed strength": _number(spec.variation_strength) if varied else None,
        "Seed resize from": f"{width}x{height}" if width else None,
        "Denoising strength": _number(spec.denoising_strength) if spec.target else None,
        "ENSD": spec.eta_noise_seed_delta or None,
        "RNG": spec.rng,
    }


def _hires(spec: JobSpec) -> dict[str, object]:
    """The second pass, and what differs in it from the first."""
    if spec.target is None:
        return {}
    own = {
        "Hires checkpoint": (spec.hires_checkpoint, spec.checkpoint),
        "Hires sampler": (spec.hires_sampler, spec.sampler),
        "Hires prompt": (spec.hires_prompt, spec.prompt),
        "Hires negative prompt": (spec.hires_negative_prompt, spec.negative_prompt),
    }
    size = f"{spec.hires_width}x{spec.hires_height}"
    return {
        **{name: said for name, (said, first) in own.items() if said not in ("", first)},
        "Hires upscale": None if spec.sized else _number(spec.hires_scale),
        "Hires resize": size if spec.sized else None,
        "Hires steps": spec.hires_steps or None,
        "Hires upscaler": spec.hires_upscaler,
        "Hires CFG Scale": _number(spec.hires_cfg_scale),
        "Extra noise": _number(spec.extra_noise or None),
    }


def _sampling(spec: JobSpec) -> dict[str, object]:
    """What differs from how samplers usually are, and has an effect on that of some pass."""
    samplers, usual = [SAMPLERS[each.sampler] for each in spec.passes], SamplingOptions()
    set_by: dict[str, object] = {
        "Noise Schedule": "Zero Terminal SNR" if spec.zero_terminal_snr else None,
        "Discard penultimate sigma": spec.discard_penultimate or None,
        "Schedule type": spec.scheduler if spec.scheduler != usual.scheduler else None,
        "Schedule min sigma": _number(spec.sigma_min),
        "Schedule max sigma": _number(spec.sigma_max),
        "Schedule rho": _number(spec.rho),
        "SGM noise multiplier": spec.sgm_noise_multiplier or None,
    }
    for sampler in samplers:
        if sampler.eta is not None and spec.eta not in (None, sampler.eta):
            set_by["Eta DDIM" if sampler.name == "DDIM" else "Eta"] = _number(spec.eta)
    if spec.s_churn and any(sampler.churn for sampler in samplers):
        set_by["Sigma churn"] = _number(spec.s_churn)
        set_by["Sigma tmin"] = _number(spec.s_tmin or None)
        set_by["Sigma tmax"] = _number(spec.s_tmax)
    if spec.s_noise != usual.s_noise and any(sampler.s_noise for sampler in samplers):
        set_by["Sigma noise"] = _number(spec.s_noise)
    return set_by


def _guidance(spec: JobSpec) -> dict[str, object]:
    """What differs from plain guidance, and has an effect."""
    prompts = (text for each in spec.passes for text in (each.prompt, each.negative_prompt))
    emphasised = any(mark in text for text in prompts for mark in "([")
    emphasis = spec.emphasis if emphasised and spec.emphasis != "Original" else None
    if not any(each.guided for each in spec.passes):
        return {"Emphasis": emphasis}
    start, end = spec.guidance_start, spec.guidance_end
    return {
        "NGMS": _number(spec.s_min_uncond or None),
        "NGMS all steps": (spec.s_min_uncond_all and spec.s_min_uncond > 0) or None,
        "Skip Early CFG": _number(spec.skip_early_cond or None),
        "CFG Rescale": _number(spec.cfg_rescale or None),
        "Guidance interval": None if (start, end) == (0, 1) else f"{_number(start)}-{_number(end)}",
        "Emphasis": emphasis,
    }


def _number(value: float | None) -> str | None:
    """As short as it can be and still be read back as the same."""
    if value is None:
        return None
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _quoted(value: object) -> str:
    """As webui does, and where it would be read back as something else."""
    text = str(value)
    if any(mark in text for mark in ",:\n") or text.startswith('"') or text != text.strip():
        return json.dumps(text, ensure_ascii=False)
    return text
