"""How far, and when, an image moves away from its negative prompt."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPAN = ("guidance_start", "guidance_end")


class GuidanceOptions(BaseModel):
    """When the negative prompt is left out, at half the work, and what is done about contrast.

    Attributes:
        cfg_rescale: 0..1, how much of the contrast that guidance adds is taken back (Lin et al.
            2023, arXiv 2305.08891, section 3.4).
        s_min_uncond: webui's NGMS: below this noise level every other call goes without the
            negative prompt; 0 for none.
        s_min_uncond_all: every call below it, not every other.
        skip_early_cond: the share of calls at the beginning that go without it; 0 for none.
        guidance_start, guidance_end: the shares of the calls between which there is guidance
            (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cfg_rescale: float = Field(default=0.0, ge=0, le=1)
    s_min_uncond: float = Field(default=0.0, ge=0, le=15)
    s_min_uncond_all: bool = False
    skip_early_cond: float = Field(default=0.0, ge=0, le=1)
    guidance_start: float = Field(default=0.0, ge=0, le=1)
    guidance_end: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _rises(self) -> GuidanceOptions:
        if self.guidance_start >= self.guidance_end:
            raise ValueError(
                f"guidance_start: {self.guidance_start:g} is not below "
                f"guidance_end {self.guidance_end:g}"
            )
        return self

    @property
    def constant(self) -> bool:
        """Whether every call heeds the negative prompt alike."""
        sometimes = self.s_min_uncond or self.skip_early_cond
        return not sometimes and (self.guidance_start, self.guidance_end) == (0, 1)

    def guides(self, call: int, calls: int, sigma: float) -> bool:
        """Whether a call of the model heeds the negative prompt.

        Args:
            call: counted from 0.
            calls: in all, as prompt editing counts them; a sampler may do some more.
            sigma: the noise level that the model sees.
        """
        share = call / calls
        if self.skip_early_cond and share <= self.skip_early_cond:
            return False
        if (call % 2 or self.s_min_uncond_all) and sigma < self.s_min_uncond:
            return False
        return self.guidance_start <= share and (
            share < self.guidance_end or self.guidance_end == 1
        )
