"""/v1/jobs and /v1/images: one job, its picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from farm.api import names, thumbnails
from farm.api.deps import Caller, Serving
from farm.api.routes.batches import Cursor, cancelled, own
from farm.api.schemas.jobs import Failed, FailedPage, JobWithAttempts, Reason
from farm.db import failures, images, jobs, reasons
from farm.db.database import Database
from farm.db.images import Image
from farm.db.jobs import JobDetail
from farm.dispatch.reach import reach
from farm.dispatch.why import Place, before, explain
from farm.errors import Conflict, NotFound
from farm.spec.moves import ENDED
from farm.spec.output import MIMES, suffix_of
from farm.spec.sampling import MAX_SIDE
from farm.storage import ImageStore

router = APIRouter(prefix="/v1")

Few = Annotated[int, Query(ge=1, le=50, description="Entries on a page.")]
"""Each takes a look at thousands of jobs."""


@router.get("/jobs/{job}", tags=["jobs"], summary="One job with its attempts")
def show(job: str, services: Serving) -> JobWithAttempts:
    found = _existing(services.db, job)
    return JobWithAttempts.of(found.job, attempts=found.attempts)


@router.post("/jobs/{job}:retry", tags=["jobs"], summary="Try a failed job again")
def retry(job: str, services: Serving, caller: Caller) -> JobWithAttempts:
    """With a new budget of tries. Doing it twice is fine; one that has not failed is refused."""
    found = _existing(services.db, job)
    batch = found.job.batch_id
    own(services.db, str(batch), caller)
    if not failures.repeat(services.db, batch, found.job.ord):
        _refuse(job, found.job.state)
    return show(job, services)


@router.get(
    "/jobs/{job}/attempts/{attempt}/memory",
    tags=["jobs"],
    summary="The card's memory as it was when it ran out during an attempt",
    response_class=Response,
)
def memory(job: str, attempt: int, services: Serving, caller: Caller) -> Response:
    """A snapshot in torch's own format, a pickle, for https://pytorch.org/memory_viz. For the
    owner of the batch; the statistics of the attempt have `memory_snapshot` where there is one."""
    found = _existing(services.db, job)
    own(services.db, str(found.job.batch_id), caller)
    tried = (one["stats"] or {} for one in found.attempts if one["attempt"] == attempt)
    path = next(tried, {}).get("memory_snapshot")
    if path is None:
        raise NotFound(
            f"No memory ran out during attempt {attempt} of job {job[:40]}.",
            field="attempt",
            value=attempt,
            remedy=f"The attempts of /v1/jobs/{job[:40]} say so where it did.",
        )
    return Response(services.images.get(path), media_type="application/octet-stream")


def _existing(db: Database, name: str) -> JobDetail:
    """The job of that name, or NotFound."""
    found = jobs.fetch(db, *names.job_number(name))
    if found is None:
        raise names.no_job(name)
    return found


def _refuse(job: str, state: str) -> None:
    """Raise Conflict unless the job waits or runs already: then there is nothing to do."""
    if state == "succeeded":
        raise Conflict(
            f"Job {job} succeeded; only failed jobs are tried again.",
            field="job",
            value=job,
            remedy=f"Its image is at /v1/images/{job}; for another, submit it with another seed.",
        )
    if state in ENDED:
        raise cancelled(job.partition("-")[0])


@router.get("/failures", tags=["jobs"], summary="Jobs that have failed, by batch and cause")
def list_failures(services: Serving, limit: Few = 20, cursor: Cursor = None) -> FailedPage:
    """The newest batch first. `POST /v1/batches/{id}:retry` tries them again."""
    before = names.position(cursor, "failures") if cursor is not None else None
    found = failures.page(services.db, limit=limit + 1, before=before)
    shown, further = names.page(found, limit, lambda last: names.cursor("failures", last.batch_id))
    return FailedPage(batches=[Failed.of(batch) for batch in shown], next_cursor=further)


@router.get("/jobs/{job}/why", tags=["jobs"], summary="Why a job is where it is")
def why(job: str, services: Serving) -> Reason:
    found = _existing(services.db, job).job
    place = Place(
        found.batch_id,
        found.state,
        found.worker,
        before(services.outlook.now().works, found.batch_id),
    )
    known = reasons.facts(services.db, found.batch_id, found.ord, found.spec.checkpoint)
    if known is None:
        raise names.no_job(job)
    told = explain(place, known, reach(services.db, found.spec, known.tags))
    return Reason(job=job, state=found.state, reason=told.reason, remedy=told.remedy)


@router.get(
    "/images/{job}",
    tags=["images"],
    summary="The picture a job made",
    response_class=Response,
    responses={200: {"content": {mime: {} for mime in MIMES}}},
)
def picture(
    job: str,
    services: Serving,
    w: Annotated[
        int | None, Query(ge=16, le=MAX_SIDE, description="Width: a smaller WebP is enough.")
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Its bytes as stored, generation parameters included, or a thumbnail at least `w` wide."""
    image = images.fetch(services.db, *names.job_number(job))
    if image is None:
        raise NotFound(
            f"There is no image of job {job[:40]}.",
            field="job",
            value=job,
            remedy=f"See /v1/jobs/{job[:40]} for its state.",
        )
    small = w is not None and w < image.width
    tag = f'"{image.sha256}-{w}"' if small else f'"{image.sha256}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match and tag in if_none_match:
        return Response(status_code=304, headers=headers)
    if small and w is not None:
        return Response(_smaller(services.images, image, w), 200, headers, "image/webp")
    headers["Content-Disposition"] = f'inline; filename="{job}{suffix_of(image.mime)}"'
    return Response(services.images.get(image.path), 200, headers, image.mime)


def _smaller(store: ImageStore, image: Image, width: int) -> bytes:
    thumbnail = store.get(image.thumb_path)
    if width <= thumbnails.width_of(thumbnail):
        return thumbnail
    return thumbnails.scaled(store.get(image.path), width)
