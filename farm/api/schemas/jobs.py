"""What the API answers of jobs, their images, and why they failed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from farm.db import failures, jobs
from farm.db.images import Image
from farm.spec.job import JobSpec

THUMBNAIL = 256
"""Width in pixels that ``thumbnail`` links ask for."""


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


class JobPage(BaseModel):
    """Jobs in the order of the batch."""

    jobs: list[Job]
    next_cursor: str | None


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
