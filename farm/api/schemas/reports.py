"""What the API is asked of a worker's card, and what it answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from farm.api.names import Text
from farm.spec.job import Side


class Calibrate(BaseModel):
    """What to measure."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: Text | None = Field(
        default=None, max_length=500, description="By default the one used last."
    )
    sizes: list[tuple[Side, Side]] = Field(
        default=[],
        max_length=8,
        description="Width and height, each a multiple of 8; by default what the UNet was made "
        "for, and half of that.",
    )


class Snapshot(BaseModel):
    """How to look at a card's memory."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(
        default=0.0, ge=0, le=60, description="To record for before it who allocates what."
    )


class Report(BaseModel):
    """Where a worker's answer will be."""

    id: str
    url: str
