"""How noise is made, and how it is taken away: the settings of an image beside its prompt."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.spec.names import named
from farm.spec.samplers import scheduler_name

MAX_SEED = 2**63 - 1
MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 4096, 8
MAX_SIGMA = 100_000.0
LEVELS = (("sigma_min", "sigma_max"), ("s_tmin", "s_tmax"))
"""Pairs of noise levels of which the first lies below the second."""

OtherSide = Annotated[int, Field(ge=0, le=MAX_SIDE, multiple_of=SIDE_STEP)]
Level = Annotated[float, Field(gt=0, le=MAX_SIGMA)]


class SamplingOptions(BaseModel):
    """What webui lets people change about a sampler. None leaves it as the sampler has it.

    Attributes:
        scheduler: one of :data:`farm.spec.samplers.SCHEDULERS`.
        eta: share of fresh noise a step; 1 for ancestral and SDE samplers, 0 for DDIM.
        s_churn, s_tmin, s_tmax: noise added before steps, and between which noise levels.
        s_noise: what fresh noise is multiplied with.
        sigma_min, sigma_max: noise levels to sample between, the model's own by default.
        rho: exponent of the karras (7) and polyexponential (1) schedules.
        discard_penultimate: leave out the lowest noise level but 0, whatever the sampler.
        sgm_noise_multiplier: begin with ``sqrt(1 + sigma²)`` instead of ``sigma`` times noise.
        zero_terminal_snr: stretch the schedule until it begins with nothing but noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scheduler: Annotated[str, named(scheduler_name)] = "automatic"
    eta: float | None = Field(default=None, ge=0, le=5)
    s_churn: float = Field(default=0.0, ge=0, le=1000)
    s_tmin: float = Field(default=0.0, ge=0, le=MAX_SIGMA)
    s_tmax: Level | None = None
    s_noise: float = Field(default=1.0, ge=0, le=10)
    sigma_min: Level | None = None
    sigma_max: Level | None = None
    rho: float | None = Field(default=None, ge=0.1, le=100)
    discard_penultimate: bool = False
    sgm_noise_multiplier: bool = False
    zero_terminal_snr: bool = False

    @model_validator(mode="after")
    def _spans(self) -> SamplingOptions:
        for low, high in LEVELS:
            bottom, top = getattr(self, low), getattr(self, high)
            if bottom is not None and top is not None and bottom >= top:
                raise ValueError(f"{low}: {bottom:g} is not below {high} {top:g}")
        return self


class NoiseOptions(BaseModel):
    """Which noise an image is made from, beside its seed.

    Attributes:
        rng: ``CPU``, torch's generator there, or ``NV``, the numbers that NVIDIA cards draw, which
            is what webui does unless told otherwise (its "GPU").
        variation_seed: 0..2**63-1, of a second noise.
        variation_strength: how far towards it, 0..1; at 0 there is none.
        seed_resize_from_width, seed_resize_from_height: a size whose noise goes into the middle
            of this one, so that a seed keeps its picture at another size; 0 for none.
        eta_noise_seed_delta: added to the seed for all noise after the first (webui's ENSD).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rng: Literal["CPU", "NV"] = "CPU"
    variation_seed: int = Field(default=0, ge=0, le=MAX_SEED)
    variation_strength: float = Field(default=0.0, ge=0, le=1)
    seed_resize_from_width: OtherSide = 0
    seed_resize_from_height: OtherSide = 0
    eta_noise_seed_delta: int = Field(default=0, ge=-MAX_SEED, le=MAX_SEED)

    @model_validator(mode="after")
    def _whole_size(self) -> NoiseOptions:
        width, height = self.seed_resize_from_width, self.seed_resize_from_height
        if bool(width) != bool(height):
            missing = "seed_resize_from_height" if width else "seed_resize_from_width"
            raise ValueError(f"{missing}: give both sides to resize the seed from, or none")
        return self
