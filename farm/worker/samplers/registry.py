"""Samplers by the names people know, compiled for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import inf, isfinite, sqrt

from farm.errors import InvalidInput
from farm.spec.samplers import SAMPLERS, Sampler, sampler_name
from farm.spec.sampling import SamplingOptions
from farm.worker.samplers.churned import first_churn
from farm.worker.samplers.consistency import lcm, tcd
from farm.worker.samplers.course import Builder, Churn, Course
from farm.worker.samplers.dpm2 import dpm2, dpm2_ancestral
from farm.worker.samplers.dpm_adaptive import DpmAdaptive
from farm.worker.samplers.dpm_fast import dpm_fast
from farm.worker.samplers.dpmpp import dpmpp_2m, dpmpp_2s_ancestral
from farm.worker.samplers.dpmpp_sde import (
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from farm.worker.samplers.euler import euler, euler_ancestral, euler_ancestral_cfg_pp
from farm.worker.samplers.heun import heun, restart
from farm.worker.samplers.lms import lms, plms
from farm.worker.samplers.model_sigmas import ModelSigmas, zero_terminal_snr
from farm.worker.samplers.program import Program, Start
from farm.worker.samplers.schedules import SCHEDULES, Span
from farm.worker.samplers.unipc import unipc

_BUILDERS: Mapping[str, Builder] = {
    "DPM++ 2M SDE Heun": dpmpp_2m_sde_heun,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 2M": dpmpp_2m,
    "DPM2 a": dpm2_ancestral,
    "DPM2": dpm2,
    "DPM fast": dpm_fast,
    "Euler a CFG++": euler_ancestral_cfg_pp,
    "Euler a": euler_ancestral,
    "Euler": euler,
    "Heun": heun,
    "LMS": lms,
    "Restart": restart,
    "DDIM": euler_ancestral,
    "PLMS": plms,
    "UniPC": unipc,
    "LCM": lcm,
    "TCD": tcd,
}

ADAPTIVE = "DPM adaptive"
"""The one sampler that decides its steps while it goes."""
KEPT = 32
"""Programs that are remembered; a batch has mostly one."""

_UNIT_VARIANCE = {"DDIM", "PLMS", "UniPC", "TCD"}
"""Samplers that begin with a latent of variance 1, which is ``sqrt(1 + sigma²)`` here."""


def compile_program(
    sampler: str,
    steps: int,
    alphas_cumprod: Sequence[float],
    *,
    options: SamplingOptions | None = None,
    family: str = "sd15",
    skipped: int | None = None,
) -> Program:
    """Compile a sampler for a model into the table that the engine runs.

    A program is compiled once for all who ask for the same, unless it has a pilot.

    Args:
        sampler: one of :data:`farm.spec.samplers.SAMPLERS`, or an alias.
        steps: of the whole schedule, as the user counts them, at least 1.
        alphas_cumprod: the model's cumulative signal power a training timestep.
        options: settings of the sampler and its schedule.
        family: of the model; align-your-steps has a table for each.
        skipped: how many steps of the schedule to leave out at the beginning, 0..steps - 1, for
            an image that begins with a given latent; None for one that begins with noise alone.

    Raises:
        InvalidInput: an unknown sampler, no steps, or options that leave no way down.
        CheckpointError: the model's schedule is unusable.
    """
    known = SAMPLERS[sampler_name(sampler)]
    _check(steps, skipped)
    # What a pilot decides is one image's alone.
    build = _compiled.__wrapped__ if known.name == ADAPTIVE else _compiled
    return build(
        known,
        steps,
        tuple(alphas_cumprod),
        options=options or SamplingOptions(),
        family=family,
        skipped=skipped,
    )


@lru_cache(KEPT)
def _compiled(
    known: Sampler,
    steps: int,
    alphas_cumprod: tuple[float, ...],
    *,
    options: SamplingOptions,
    family: str,
    skipped: int | None,
) -> Program:
    if options.zero_terminal_snr:
        alphas_cumprod = tuple(zero_terminal_snr(alphas_cumprod))
    whole = _course(known, steps, ModelSigmas(alphas_cumprod, family), options)
    course = replace(whole, sigmas=whole.sigmas[skipped or 0 :])
    taken = steps - (skipped or 0)
    pilot = DpmAdaptive(course, taken) if known.name == ADAPTIVE else None
    table = pilot.steps if pilot else tuple(_builder(known)(course))
    return Program(
        name=known.name,
        steps=table,
        start=_start(known, course, options, alone=skipped is None),
        levels=(min(level for level in whole.sigmas if level > 0), whole.sigmas[0]),
        total=taken,
        done=pilot.done if pilot else tuple(accumulate(int(step.whole) for step in table)),
        pilot=pilot,
    )


def _start(known: Sampler, course: Course, options: SamplingOptions, *, alone: bool) -> Start:
    """Noise alone may have variance 1; beside a latent it is as strong as its level says."""
    high = course.sigmas[0]
    unit = alone and (options.sgm_noise_multiplier or known.name in _UNIT_VARIANCE)
    return Start(sqrt(1 + high**2) if unit else high, first_churn(course))


def _builder(sampler: Sampler) -> Builder:
    """The sampler itself; Karras and Exponential at the end of a name are only its schedule."""
    base = sampler.name.removesuffix(" Karras").removesuffix(" Exponential")
    return _BUILDERS[base]


def _course(sampler: Sampler, steps: int, model: ModelSigmas, options: SamplingOptions) -> Course:
    chosen = sampler.schedule if options.scheduler == "automatic" else options.scheduler
    low = options.sigma_min or model.smallest
    span = Span(low, options.sigma_max or model.largest, options.rho)
    discards = sampler.discard or options.discard_penultimate
    sigmas = SCHEDULES[chosen](model, steps + discards, span)
    if discards:
        del sigmas[-2]
    _check_levels(sigmas, options)
    churn = Churn(options.s_churn, options.s_tmin, options.s_tmax or inf)
    eta = sampler.eta if options.eta is None else options.eta
    return Course(
        sigmas=sigmas,
        model=model,
        eta=eta or 0.0,
        s_noise=options.s_noise if sampler.s_noise else 1.0,
        churn=churn if sampler.churn else Churn(),
    )


def _check(steps: int, skipped: int | None) -> None:
    if steps < 1:
        raise InvalidInput(
            f"A sampler cannot take {steps} steps.",
            field="steps",
            value=steps,
            remedy="Ask for at least 1.",
        )
    if not 0 <= (skipped or 0) < steps:
        raise InvalidInput(
            f"A schedule of {steps} steps has no step to begin with after {skipped}.",
            field="skipped",
            value=skipped,
            remedy=f"Skip 0 to {steps - 1} steps.",
        )


def _check_levels(sigmas: Sequence[float], options: SamplingOptions) -> None:
    if all(isfinite(high) and high > low >= 0 for high, low in pairwise(sigmas)):
        return
    given = (name for name in ("rho", "sigma_min", "sigma_max") if getattr(options, name))
    field = next(given, "scheduler")
    raise InvalidInput(
        f"The noise levels {', '.join(f'{level:.4g}' for level in sigmas[:5])}, … do not fall.",
        field=field,
        value=getattr(options, field),
        remedy="Leave sigma_min, sigma_max and rho out, or set sigma_min well below sigma_max.",
    )
