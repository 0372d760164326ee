"""A batch as a stream of events: state from Postgres, nudged by the broker's progress events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import to_thread
from sse_starlette.event import ServerSentEvent

from farm.api.schemas.batches import Batch
from farm.errors import Unavailable

OFTEN, SELDOM = 0.5, 2.0
"""Seconds between looks at Postgres while something moves, and while nothing does."""

_QUEUED = 1000
_log = logging.getLogger(__name__)

Progress = Callable[[], AsyncIterator[dict[str, Any]]]


async def follow(look: Callable[[], Batch | None], progress: Progress) -> AsyncIterator[Any]:
    """Events ``batch`` when it changed, ``progress`` as they come, ``end`` once it has ended.

    ``look`` reads the batch (in a thread) and is what counts; ``progress`` begins to listen to
    the broker, may end or fail at any time, and only makes the stream livelier.
    """
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_QUEUED)
    listener = asyncio.create_task(_listen(progress, heard))
    last = None
    try:
        while True:
            batch = await _look(look)
            # When it will end changes all the time; that alone is no news.
            state = batch and batch.model_copy(update={"eta": None})
            if batch and state != last:
                yield _event("batch", batch.model_dump(mode="json"))
                last = state
            if batch and batch.ended:
                yield _event("end", batch.model_dump(mode="json"))
                return
            async for event in _until_next_look(heard):
                yield event
    finally:
        listener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listener


async def _look(look: Callable[[], Batch | None]) -> Batch | None:
    try:
        return await to_thread.run_sync(look)
    except Unavailable as error:
        # The client keeps its stream; it hears on when Postgres is back.
        _log.warning("events: %s", error)
        return None


async def _until_next_look(heard: asyncio.Queue[dict[str, Any]]) -> AsyncIterator[Any]:
    clock = asyncio.get_running_loop().time
    begun, wait = clock(), SELDOM
    while (left := begun + wait - clock()) > 0:
        try:
            event = await asyncio.wait_for(heard.get(), left)
        except TimeoutError:
            return
        if "step" not in event:
            wait = OFTEN
        yield _event("preview" if "image" in event else "progress", event)


async def _listen(progress: Progress, heard: asyncio.Queue[dict[str, Any]]) -> None:
    try:
        async for event in progress():
            if not heard.full():
                heard.put_nowait(event)
    except Exception as error:  # whatever ails the broker, the stream goes on without it
        _log.warning("no progress events: %s", error)


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    # ASCII only: many clients take U+2028 in a prompt for the end of the line.
    return ServerSentEvent(json.dumps(data), event=name)
