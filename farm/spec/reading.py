"""How a job's prompts are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

EMPHASES = ("Original", "No norm", "Ignore", "None")


def _emphasis(written: object) -> object:
    """The name itself, of one that is written in other letters."""
    names = {name.casefold(): name for name in EMPHASES}
    return names.get(written.casefold(), written) if isinstance(written, str) else written


class ReadingOptions(BaseModel):
    """How text encoders read a prompt.

    Attributes:
        clip_skip: which layer from the end SD1 reads, 1..12; other families have their own.
        emphasis: what weights in the prompt do to its encoding. ``Original`` multiplies, then
            restores the mean of each chunk; ``No norm`` only multiplies; ``Ignore`` takes the
            brackets away; ``None`` encodes them, and BREAK, as they stand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    clip_skip: int = Field(default=1, ge=1, le=12)
    emphasis: Annotated[
        Literal["Original", "No norm", "Ignore", "None"], BeforeValidator(_emphasis)
    ] = "Original"
