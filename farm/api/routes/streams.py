"""POST /v1/batches of jobs listed one a line, taken in as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from farm.api.deps import Caller, Serving
from farm.api.guard import is_stream
from farm.api.routes.batches import existing
from farm.api.schemas.batches import Accepted
from farm.api.upload import Upload
from farm.spec.listing import MAX_LINE

_CHUNK = 1 << 20
"""Bytes of whole lines that are checked and stored at once."""


class _StreamRoute(APIRoute):
    """Takes only what comes line by line; other bodies go on to the next route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.FULL and not is_stream(Headers(scope=scope)):
            return Match.NONE, {}
        return match, child


router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=_StreamRoute)


# Of two routes with one address only one can stand in the OpenAPI document: the other tells.
@router.post("", status_code=202, include_in_schema=False)
async def stream(
    request: Request,
    response: Response,
    services: Serving,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Accepted:
    """Accepts the batch whole or refuses it whole; a connection that is cut leaves nothing."""
    few = services.uploads
    upload = await to_thread.run_sync(
        partial(
            Upload,
            services.db,
            caller,
            idempotency_key,
            output=services.output,
            quota=services.quota,
        ),
        limiter=few,
    )
    chunks = request.stream()
    try:
        async for lines in _lines(chunks):
            await to_thread.run_sync(upload.add, lines, limiter=few)
        accepted = await to_thread.run_sync(upload.complete, limiter=few)
    except BaseException as error:
        with CancelScope(shield=True):
            await to_thread.run_sync(upload.discard)
        if isinstance(error, Exception):
            # A client that still sends does not read: it would see a broken pipe, not the answer.
            async for _ in chunks:
                pass
        raise
    response.status_code = 202 if accepted.created else 200
    response.headers["Location"] = f"/v1/batches/{accepted.id}"
    found = await to_thread.run_sync(existing, services.db, str(accepted.id))
    return Accepted.whole(found, None, notices=upload.notices)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines, a chunk's worth at a time; one that is too long comes in pieces."""
    held, size = [], 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size < _CHUNK:
            continue
        *lines, rest = b"".join(held).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        if lines:
            yield lines
        held, size = [rest], len(rest)
    if rest := b"".join(held):
        yield rest.split(b"\n")
