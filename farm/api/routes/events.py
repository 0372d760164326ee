"""/v1/batches/{id}/events: a batch as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from sse_starlette.sse import EventSourceResponse

from farm.api.deps import Serving, key_of
from farm.api.live import follow
from farm.api.routes.batches import existing
from farm.api.schemas.batches import Batch
from farm.api.seats import client_at
from farm.broker import progress_events
from farm.db import users

router = APIRouter(prefix="/v1/batches", tags=["batches"])


async def seated(request: Request, services: Serving) -> AsyncIterator[None]:
    """A place for as long as the answer takes, whether it ends or the client goes: of the user
    whose key was sent, or else of the address that asks."""
    key = await key_of(request)
    user = await to_thread.run_sync(users.for_key, services.db, key) if key else None
    address = client_at(request.client.host) if request.client else "this machine"
    with services.seats.taken(user.name if user else address):
        yield


@router.get(
    "/{batch}/events",
    summary="Follow a batch (server-sent events)",
    response_class=EventSourceResponse,
    dependencies=[Depends(seated)],
)
async def events(
    batch: str,
    services: Serving,
    previews: Annotated[bool, Query(description="Pictures of jobs under way, too.")] = False,
) -> EventSourceResponse:
    """`batch` whenever it changed, `progress` while jobs run, `end` once nothing is left to do.

    With `previews`, `preview` too: a small picture of a job under way, as a data URL.
    The first event comes at once, so a client that lost the stream just opens it again.
    """

    def look() -> Batch:
        return Batch.of(existing(services.db, batch), services.outlook)

    found = await to_thread.run_sync(look)

    def progress() -> AsyncIterator[dict[str, Any]]:
        return progress_events(services.broker_url, int(found.id), pictures=previews)

    return EventSourceResponse(follow(look, progress), ping=10)
