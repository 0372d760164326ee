"""What the API answers of batches, as it stands in the OpenAPI document."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, Field

from farm.db import batches
from farm.dispatch import forecast
from farm.dispatch.outlook import Outlook
from farm.spec.output import Output


class Counts(BaseModel):
    """Jobs by state; they add up to ``total``. Assigned and waiting jobs count as pending."""

    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class Eta(BaseModel):
    """When a batch ends: as likely as not by ``p50``, nine times out of ten by ``p90``."""

    p50: datetime
    p90: datetime
    p50_seconds: float
    p90_seconds: float
    measured: bool = Field(description="false: jobs of a checkpoint have never been timed")

    @classmethod
    def of(cls, eta: forecast.Eta, *, measured: bool) -> Self:
        now = datetime.now(UTC)
        return cls(
            p50=now + timedelta(seconds=eta.p50),
            p90=now + timedelta(seconds=eta.p90),
            p50_seconds=eta.p50,
            p90_seconds=eta.p90,
            measured=measured,
        )


class Batch(BaseModel):
    """A batch. ``ended`` is true once nothing of it is pending or running."""

    id: str
    name: str
    user: str
    state: str = Field(description="pending, running, paused, done or cancelled")
    ended: bool
    priority: int
    tags: list[str] = Field(description="that a worker must have to take its jobs")
    output: Output = Field(description="how its images become files")
    keep: bool = Field(description="never pruned, however old")
    total: int
    counts: Counts
    created_at: datetime
    ended_at: datetime | None
    eta: Eta | None = Field(description="null where it is not known, or nothing goes on")
    links: dict[str, str]

    @classmethod
    def of(cls, batch: batches.Batch, outlook: Outlook | None, **more: Any) -> Self:
        here = f"/v1/batches/{batch.id}"
        going_on = batch.state in ("pending", "running")
        seen = outlook.now() if outlook and going_on else None
        ends = seen and seen.etas.get(batch.id)
        return cls(
            id=str(batch.id),
            name=batch.name,
            user=batch.user,
            state=batch.state,
            ended=not batch.counts["pending"] and not batch.counts["running"],
            priority=batch.priority,
            tags=batch.tags,
            output=batch.output,
            keep=batch.keep,
            total=batch.total,
            counts=Counts(**batch.counts),
            created_at=batch.created_at,
            ended_at=batch.ended_at,
            eta=Eta.of(ends, measured=seen.timed(batch.id)) if seen and ends else None,
            links={
                "self": here,
                "jobs": f"{here}/jobs",
                "events": f"{here}/events",
                "summary": f"{here}/summary",
                "cancel": f"{here}:cancel",
                "pause": f"{here}:pause",
                "resume": f"{here}:resume",
                "retry": f"{here}:retry",
            },
            **more,
        )


class Retried(Batch):
    """A batch of which failed jobs are tried again."""

    retried: int = Field(description="jobs that had failed and now wait")


class Axis(BaseModel):
    field: str
    values: list[Any]


class Specification(BaseModel):
    """What all jobs of a batch share, what varies (slowest first), images per cell."""

    template: dict[str, Any]
    axes: list[Axis]
    count: int


class WholeBatch(Batch):
    """A batch with what it was made from; null when it lists its jobs one by one."""

    spec: Specification | None

    @classmethod
    def whole(cls, batch: batches.Batch, outlook: Outlook | None, **more: Any) -> Self:
        stored = batch.spec
        spec = stored and Specification(
            template=stored["template"],
            axes=[Axis(field=field, values=values) for field, values in stored["axes"]],
            count=stored["count"],
        )
        return cls.of(batch, outlook, spec=spec, **more)


class Accepted(WholeBatch):
    """A batch that was accepted."""

    notices: list[str] = Field(description="what it will have to wait for, in sentences")


class BatchPage(BaseModel):
    """Batches, newest first."""

    batches: list[Batch]
    next_cursor: str | None
