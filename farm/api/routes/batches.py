"""/v1/batches: submit, list, look, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.api import names
from farm.api.deps import Caller, Serving
from farm.api.guard import NDJSON
from farm.api.schemas.batches import Accepted, Batch, BatchPage, Retried, WholeBatch
from farm.api.schemas.jobs import Job, JobPage
from farm.api.schemas.quotes import Quotation
from farm.api.submission import checked, submit
from farm.db import batches, failures, jobs, retention
from farm.db.database import Database
from farm.db.users import User
from farm.dispatch.outlook import Outlook
from farm.dispatch.prospects import prospects
from farm.dispatch.quote import quote
from farm.errors import Conflict, Forbidden, InvalidInput
from farm.spec.batch import BatchRequest, Priority

router = APIRouter(prefix="/v1/batches", tags=["batches"])

MAX_PAGE = 500
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Entries on a page.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before.")
]


_LINES = {
    "requestBody": {
        "content": {
            NDJSON: {
                "schema": {"type": "string"},
                "example": '{"batch": {"steps": 8}}\n{"prompt": "a lion"}\n{"prompt": "a tiger"}\n',
            }
        }
    }
}


async def _once(
    request: Request,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> tuple[str, bytes] | None:
    """The key under which a request is accepted once, with the body that it is for."""
    return (idempotency_key, await request.body()) if idempotency_key else None


@router.post("", status_code=202, summary="Submit a batch", openapi_extra=_LINES)
def create(
    request: BatchRequest,
    response: Response,
    services: Serving,
    caller: Caller,
    key: Annotated[tuple[str, bytes] | None, Depends(_once)],
) -> Accepted:
    """Accepts a batch whole or refuses it whole; answers before any image is made.

    A batch of which no worker could ever make some job is refused, unless it says
    `wait_for_worker`. `notices` tells what it will have to wait for.

    With an `Idempotency-Key`, sending the same request again answers 200 with the batch made
    the first time, so that a client may repeat a request whose answer it never got.

    As `application/x-ndjson` the body is one job a line, up to ten million of them; the first line
    may be `{"batch": {...}}` with the fields that they share.
    """
    accepted, notices = submit(
        services.db,
        caller,
        request,
        key,
        output=services.output,
        quota=services.quota,
        glance=services.glance,
    )
    response.status_code = 202 if accepted.created else 200
    response.headers["Location"] = f"/v1/batches/{accepted.id}"
    # No forecast: accepting is quick whatever the farm has to do.
    return Accepted.whole(existing(services.db, str(accepted.id)), None, notices=notices)


@router.post(":quote", summary="What a batch would take")
def ask(request: BatchRequest, services: Serving, caller: Caller) -> Quotation:
    """Checks it as if it were submitted, and says what it would take; nothing is stored."""
    batch = checked(services.db, request)
    found = quote(
        services.db,
        services.outlook,
        caller,
        batch,
        priority=request.priority,
        tags=request.tags,
        output=request.output or services.output,
    )
    return Quotation.of(found, prospects(services.db, batch, request.tags))


@router.get("", summary="List batches, newest first")
def listing(services: Serving, limit: Limit = 50, cursor: Cursor = None) -> BatchPage:
    before = names.position(cursor, "batches") if cursor is not None else None
    found = batches.page(services.db, limit=limit + 1, before=before)
    shown, further = names.page(found, limit, lambda last: names.cursor("batches", last.id))
    answers = [Batch.of(batch, services.outlook) for batch in shown]
    return BatchPage(batches=answers, next_cursor=further)


@router.get("/{batch}", summary="One batch")
def show(batch: str, services: Serving) -> WholeBatch:
    return WholeBatch.whole(existing(services.db, batch), services.outlook)


@router.get("/{batch}/jobs", summary="Jobs of a batch, in order")
def list_jobs(
    batch: str,
    services: Serving,
    state: Annotated[str | None, Query(max_length=20)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobPage:
    if state is not None and state not in jobs.STATES:
        raise InvalidInput(
            f"state: {state!r} is not a state of a job.",
            field="state",
            value=state,
            remedy=f"Use one of {', '.join(jobs.STATES)}.",
        )
    number = existing(services.db, batch).id
    place = f"jobs/{number}/{state or ''}"
    after = names.position(cursor, place) if cursor is not None else -1
    found = jobs.page(services.db, number, limit=limit + 1, after=after, state=state)
    shown, further = names.page(found, limit, lambda last: names.cursor(place, last.ord))
    return JobPage(jobs=[Job.of(job) for job in shown], next_cursor=further)


@router.get("/{batch}/summary", summary="What the images of a batch took")
def summary(batch: str, services: Serving) -> dict[str, Any]:
    """Throughput, mean seconds of each stage, peak memory, images by worker."""
    found = existing(services.db, batch)
    return {"id": str(found.id), **batches.summary(services.db, found.id)}


class Change(BaseModel):
    """What of a batch can be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority | None = None
    keep: bool | None = Field(default=None, description="Never prune it, however old.")

    @model_validator(mode="after")
    def _something(self) -> Change:
        if self.priority is None and self.keep is None:
            raise ValueError("priority: neither it nor keep is given")
        return self


@router.post("/{batch}:cancel", summary="Cancel what has not ended")
def cancel(batch: str, services: Serving, caller: Caller) -> Batch:
    """Running jobs stop at their next step; what is made stays. Doing it twice is fine."""
    number = own(services.db, batch, caller)
    return _changed(batches.cancel(services.db, number), batch, services.outlook)


@router.post("/{batch}:pause", summary="Begin no more of its jobs")
def pause(batch: str, services: Serving, caller: Caller) -> Batch:
    """Jobs in flight go on to their end. Doing it twice, or to a batch that ended, is fine."""
    number = own(services.db, batch, caller)
    return _changed(batches.pause(services.db, number), batch, services.outlook)


@router.post("/{batch}:resume", summary="Go on with a paused batch")
def resume(batch: str, services: Serving, caller: Caller) -> Batch:
    number = own(services.db, batch, caller)
    return _changed(batches.resume(services.db, number), batch, services.outlook)


@router.patch("/{batch}", summary="Change a batch's priority, or keep it for ever")
def change(batch: str, change: Change, services: Serving, caller: Caller) -> Batch:
    """A priority counts for the jobs that no worker holds yet."""
    number = own(services.db, batch, caller)
    if change.keep is not None:
        retention.set_keep(services.db, number, change.keep)
    if change.priority is not None:
        batches.set_priority(services.db, number, change.priority)
    return Batch.of(existing(services.db, batch), services.outlook)


@router.post("/{batch}:retry", summary="Try its failed jobs again")
def retry(batch: str, services: Serving, caller: Caller) -> Retried:
    """With a new budget of tries each. Doing it twice is fine; a cancelled batch stays as it is."""
    number = own(services.db, batch, caller)
    retried = failures.repeat(services.db, number)
    found = existing(services.db, batch)
    if found.state == "cancelled":
        raise cancelled(batch)
    return Retried.of(found, services.outlook, retried=retried)


def cancelled(batch: str) -> Conflict:
    """Jobs of a cancelled batch are not tried again."""
    return Conflict(
        f"Batch {batch} was cancelled; its jobs are not tried again.",
        field="batch",
        value=batch,
        remedy="Submit what you want again as a new batch.",
    )


def own(db: Database, name: str, caller: User) -> int:
    """The number of a batch that the caller may change; Forbidden where it is another's."""
    found = existing(db, name)
    if found.user != caller.name and not caller.admin:
        raise Forbidden(
            f"Batch {name} is {found.user}'s.",
            field="batch",
            value=name,
            remedy="Ask them, or an administrator of the farm.",
        )
    return found.id


def _changed(found: batches.Batch | None, name: str, outlook: Outlook) -> Batch:
    if found is None:
        raise names.no_batch(name)
    return Batch.of(found, outlook)


def existing(db: Database, name: str) -> batches.Batch:
    """The batch of that name, or NotFound."""
    found = batches.fetch(db, names.batch_number(name))
    if found is None:
        raise names.no_batch(name)
    return found
