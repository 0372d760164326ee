"""Samplers and schedules by the names people know, and what each lets them set.

Names, order, aliases and habits are those of stable-diffusion-webui 1.8; the last few are newer.
"""

from __future__ import annotations

from dataclasses import dataclass

from farm.spec.names import look_up


@dataclass(frozen=True, slots=True)
class Sampler:
    """What is known of a sampler without running it.

    Attributes:
        name: as webui shows it.
        aliases: other names it goes by.
        schedule: what ``automatic`` means for it.
        eta: its share of fresh noise where a job gives none; None if it has no such setting.
        churn: takes ``s_churn``, ``s_tmin`` and ``s_tmax``.
        s_noise: takes ``s_noise``.
        discard: leaves out the lowest noise level but 0, of one more than asked for.
        negative: steps along the negative prompt's estimate, whatever the guidance.
    """

    name: str
    aliases: tuple[str, ...]
    schedule: str = "uniform"
    eta: float | None = None
    churn: bool = False
    s_noise: bool = False
    discard: bool = False
    negative: bool = False


def _sde(name: str, alias: str, schedule: str = "uniform", *, discard: bool = False) -> Sampler:
    return Sampler(name, (alias,), schedule, eta=1.0, s_noise=True, discard=discard)


def _churned(name: str, alias: str, schedule: str = "uniform", *, discard: bool = False) -> Sampler:
    return Sampler(name, (alias,), schedule, churn=True, s_noise=True, discard=discard)


_TABLE = (
    Sampler("DPM++ 2M Karras", ("k_dpmpp_2m_ka",), "karras"),
    _sde("DPM++ SDE Karras", "k_dpmpp_sde_ka", "karras"),
    _sde("DPM++ 2M SDE Exponential", "k_dpmpp_2m_sde_exp", "exponential"),
    _sde("DPM++ 2M SDE Karras", "k_dpmpp_2m_sde_ka", "karras"),
    Sampler("Euler a", ("k_euler_a", "k_euler_ancestral"), eta=1.0),
    _churned("Euler", "k_euler"),
    Sampler("LMS", ("k_lms",)),
    _churned("Heun", "k_heun"),
    _churned("DPM2", "k_dpm_2", discard=True),
    _sde("DPM2 a", "k_dpm_2_a", discard=True),
    _sde("DPM++ 2S a", "k_dpmpp_2s_a"),
    Sampler("DPM++ 2M", ("k_dpmpp_2m",)),
    _sde("DPM++ SDE", "k_dpmpp_sde"),
    _sde("DPM++ 2M SDE", "k_dpmpp_2m_sde"),
    _sde("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun"),
    _sde("DPM++ 2M SDE Heun Karras", "k_dpmpp_2m_sde_heun_ka", "karras"),
    _sde("DPM++ 2M SDE Heun Exponential", "k_dpmpp_2m_sde_heun_exp", "exponential"),
    _sde("DPM++ 3M SDE", "k_dpmpp_3m_sde", discard=True),
    _sde("DPM++ 3M SDE Karras", "k_dpmpp_3m_sde_ka", "karras", discard=True),
    _sde("DPM++ 3M SDE Exponential", "k_dpmpp_3m_sde_exp", "exponential", discard=True),
    _sde("DPM fast", "k_dpm_fast"),
    Sampler("DPM adaptive", ("k_dpm_ad",), eta=1.0),
    Sampler("LMS Karras", ("k_lms_ka",), "karras"),
    _churned("DPM2 Karras", "k_dpm_2_ka", "karras", discard=True),
    _sde("DPM2 a Karras", "k_dpm_2_a_ka", "karras", discard=True),
    _sde("DPM++ 2S a Karras", "k_dpmpp_2s_a_ka", "karras"),
    Sampler("Restart", ("restart",), "karras"),
    Sampler("DDIM", ("ddim",), "ddim", eta=0.0),
    Sampler("PLMS", ("plms",), "ddim"),
    Sampler("UniPC", ("unipc",), "unipc"),
    Sampler("LCM", ("k_lcm",), "lcm"),
    Sampler("TCD", ("k_tcd",), "tcd", eta=0.3),
    Sampler("Euler a CFG++", ("k_euler_a_cfg_pp",), eta=1.0, negative=True),
)

SAMPLERS = {sampler.name: sampler for sampler in _TABLE}
"""Every sampler by name, in webui's order."""

SECOND_ORDER = frozenset(
    name
    for name in SAMPLERS
    if name.startswith(("Heun", "DPM2", "DPM++ 2S", "DPM++ SDE", "Restart"))
)
"""Samplers that call the model twice a step; prompt editing counts calls, as in webui."""

SCHEDULERS = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim": "DDIM",
    "beta": "Beta",
    "align_your_steps": "Align Your Steps",
}
"""Schedules a job may ask for: webui's names, and what it shows people."""

_NAMES = {
    known.casefold(): sampler.name
    for sampler in _TABLE
    for known in (sampler.name, *sampler.aliases)
}
_SCHEDULES = {
    known.casefold(): name for name, shown in SCHEDULERS.items() for known in (name, shown)
}
_SCHEDULES["normal"] = "uniform"  # webui has a second name for even timesteps


def sampler_name(written: str) -> str:
    """The name of the sampler that people write like this: by name or alias, in any case.

    Raises:
        InvalidInput: there is none.
    """
    return look_up(written, _NAMES, kind="sampler", field="sampler")


def scheduler_name(written: str) -> str:
    """The name of the schedule that people write like this: ``SGM Uniform``, ``sgm_uniform``.

    Raises:
        InvalidInput: there is none.
    """
    return look_up(written, _SCHEDULES, kind="schedule", field="scheduler")
