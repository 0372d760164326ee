"""What the API answers with, as it stands in the OpenAPI document."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from farm.db import batches, failures, health, jobs, sessions
from farm.db.images import Image
from farm.dispatch import forecast, quote
from farm.dispatch.outlook import Outlook
from farm.dispatch.prospects import Prospects
from farm.spec.job import JobSpec
from farm.spec.output import Output
from farm.spec.tags import MAX_TAGS, Tag

SHAPES = 100
"""Shapes of a batch that a quote lists."""
THUMBNAIL = 256
"""Width in pixels that ``thumbnail`` links ask for."""


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

    @classmethod
    def of(cls, eta: forecast.Eta) -> Self:
        now = datetime.now(UTC)
        return cls(
            p50=now + timedelta(seconds=eta.p50),
            p90=now + timedelta(seconds=eta.p90),
            p50_seconds=eta.p50,
            p90_seconds=eta.p90,
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
        ends = outlook.now().etas.get(batch.id) if outlook and going_on else None
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
            eta=Eta.of(ends) if ends else None,
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
    workers: int = Field(description="live ones that can load all its checkpoints")
    eta: Eta | None = Field(description="at today's load; null without such workers")
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
            "eta": found.eta and Eta.of(found.eta),
            "shapes": [Shape(**vars(shape)) for shape in shown],
        }
        return cls(**values)


class StoredImage(BaseModel):
    url: str
    thumbnail: str
    sha256: str
    width: int
    height: int
    bytes: int
    mime: str
    infotext: str

    @classmethod
    def of(cls, job: str, image: Image) -> Self:
        url = f"/v1/images/{job}"
        return cls(
            url=url,
            thumbnail=f"{url}?w={THUMBNAIL}",
            sha256=image.sha256,
            width=image.width,
            height=image.height,
            bytes=image.bytes,
            mime=image.mime,
            infotext=image.infotext,
        )


class Job(BaseModel):
    """A job; ``stats`` and times are those of its last attempt that ended."""

    id: str = Field(examples=["12-0"])
    batch: str
    ord: int
    state: str = Field(
        description="pending, assigned, running, waiting, succeeded, failed or cancelled"
    )
    attempt: int
    spec: JobSpec
    image: StoredImage | None
    stats: dict[str, Any] | None
    error: dict[str, Any] | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, job: jobs.Job, **more: Any) -> Self:
        id = f"{job.batch_id}-{job.ord}"
        links = {"self": f"/v1/jobs/{id}", "batch": f"/v1/batches/{job.batch_id}"}
        return cls(
            id=id,
            batch=str(job.batch_id),
            ord=job.ord,
            state=job.state,
            attempt=job.attempt,
            spec=job.spec,
            image=StoredImage.of(id, job.image) if job.image else None,
            stats=job.stats,
            error=job.error,
            worker=job.worker,
            started_at=job.started_at,
            ended_at=job.ended_at,
            links=links | ({"image": f"/v1/images/{id}"} if job.image else {}),
            **more,
        )


class JobWithAttempts(Job):
    attempts: list[dict[str, Any]]


class Reason(BaseModel):
    """Why a job is where it is, and what would change that."""

    job: str
    state: str
    reason: str
    remedy: str | None


class Cause(BaseModel):
    """Why jobs of a batch failed."""

    failure_class: str
    detail: str
    remedy: str | None
    jobs: int
    first: str = Field(description="one of them", examples=["12-0"])
    workers: list[str] = Field(description="on which their last attempts failed")


class Failed(BaseModel):
    """A batch with failed jobs; of very many, only the first are told apart in `causes`."""

    batch: str
    name: str
    user: str
    state: str
    failed: int
    causes: list[Cause]

    @classmethod
    def of(cls, found: failures.Failed) -> Self:
        told = [
            Cause(**{**vars(cause), "first": f"{found.batch_id}-{cause.first}"})
            for cause in found.causes
        ]
        return cls(**{**vars(found), "causes": told}, batch=str(found.batch_id))


class FailedPage(BaseModel):
    """Batches with failed jobs, newest first."""

    batches: list[Failed]
    next_cursor: str | None


class JobPage(BaseModel):
    """Jobs in the order of the batch."""

    jobs: list[Job]
    next_cursor: str | None


class Quarantine(BaseModel):
    """Why a worker gets no jobs; `test_at`: when it gets its next canaries, if ever."""

    reason: str
    since: datetime
    by_hand: bool
    times: int = Field(description="in a row, less than a day apart")
    tests: int = Field(description="canaries that it failed")
    test_at: datetime | None
    last_test: str | None


class Worker(BaseModel):
    """A worker's present session."""

    name: str
    session: str
    host: str
    state: str = Field(description="live, draining or quarantined")
    device: dict[str, Any]
    profile: str
    capacity: int = Field(description="jobs it holds at once")
    tags: list[str] = Field(description="that batches may ask for")
    running: int
    assigned: int
    resident: list[str] = Field(description="checkpoints in its memory")
    stats: dict[str, Any]
    started_at: datetime
    lease_until: datetime
    quarantine: Quarantine | None

    @classmethod
    def of(cls, session: sessions.Session, away: health.Quarantine | None) -> Self:
        values = {name: part for name, part in vars(session).items() if name in cls.model_fields}
        told = Quarantine(**vars(away)) if away else None
        return cls(name=session.worker, session=session.id, quarantine=told, **values)


class Tags(BaseModel):
    """Tags for a worker to have, and not to have any more."""

    model_config = ConfigDict(extra="forbid")

    add: list[Tag] = Field(default=[], max_length=MAX_TAGS)
    remove: list[Tag] = Field(default=[], max_length=MAX_TAGS)


class Workers(BaseModel):
    workers: list[Worker]


class Pruned(BaseModel):
    """Batches that go with all that they made, or would go."""

    batches: int
    jobs: int
    images: int
    bytes: int
    dry_run: bool


class Health(BaseModel):
    status: str
    version: str
