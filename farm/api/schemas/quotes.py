"""What the API answers of what a batch would take."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field

from farm.api.schemas.batches import Eta
from farm.dispatch import quote
from farm.dispatch.prospects import Prospects

SHAPES = 100
"""Shapes of a batch that a quote lists."""


class Shape(BaseModel):
    """The jobs of a batch that have one checkpoint and size."""

    checkpoint: str
    width: int
    height: int
    jobs: int
    fits: bool | None = Field(description="on a live worker; null where none says")
    vram_bytes: int | None = Field(description="one image at its peak, where it takes least")
    remedy: str | None = Field(description="the nearest change that fits")


class Quotation(BaseModel):
    """What a batch would take; ``gpu_seconds`` do not count the loads."""

    jobs: int
    checkpoints: dict[str, int] = Field(description="jobs on each")
    loads: int = Field(description="checkpoints that no worker holds yet")
    gpu_seconds: float
    measured: bool = Field(description="false: jobs of a checkpoint have never been timed")
    workers: int = Field(description="live ones that could make some of its jobs")
    eta: Eta | None = Field(
        description="at today's load; null where some of its jobs have no worker"
    )
    seconds_alone: float | None = Field(description="the same with the farm to itself")
    unfit: int = Field(description="jobs that fit no live worker")
    shapes: list[Shape] = Field(description="by checkpoint and size, the most jobs first")
    sheet: tuple[int, int] = Field(description="width and height of its contact sheet in pixels")
    disk_bytes: int = Field(description="for its images, roughly")
    refusal: dict[str, Any] | None = Field(
        description="what a submission is refused with that does not say `wait_for_worker`"
    )
    notices: list[str] = Field(description="what it would have to wait for, in sentences")

    @classmethod
    def of(cls, found: quote.Quote, expected: Prospects) -> Self:
        shown = found.shapes[:SHAPES]
        values = {
            **vars(found),
            "refusal": expected.refusal and expected.refusal.to_dict(),
            "notices": [expected.notice] if expected.notice else [],
            "eta": found.eta and Eta.of(found.eta, measured=found.measured),
            "shapes": [Shape(**vars(shape)) for shape in shown],
        }
        return cls(**values)
