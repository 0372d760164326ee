"""Progress over pub/sub: live, cheap, and allowed to get lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_log = logging.getLogger(__name__)

_PREVIEWS = "farm:previews:"
_RECONNECT = 1.0
_TIMEOUTS = {"socket_timeout": 5, "socket_connect_timeout": 2}


def client_url(broker_url: str) -> str:
    """The broker's URL as redis-py writes it: a Unix socket is ``unix://``, not Celery's
    ``redis+socket://``."""
    if broker_url.startswith("redis+socket://"):
        return broker_url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    return broker_url


def channel(batch_id: int) -> str:
    return f"farm:progress:{batch_id}"


def previews(batch_id: int) -> str:
    return f"{_PREVIEWS}{batch_id}"


class Progress:
    """Tells whoever listens how jobs get on; never raises and never waits long."""

    def __init__(self, broker_url: str) -> None:
        self._client = redis.Redis.from_url(client_url(broker_url), **_TIMEOUTS)

    def tell(self, batch_id: int, event: dict[str, Any]) -> None:
        try:
            self._client.publish(channel(batch_id), json.dumps(event))
        except RedisError as error:
            _log.debug("progress of batch %s was not told: %s", batch_id, error)

    def tell_all(self, events: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """The same for several, each with its batch, in one message to the broker."""
        try:
            with self._client.pipeline(transaction=False) as together:
                for batch_id, event in events:
                    together.publish(channel(batch_id), json.dumps(event))
                together.execute()
        except RedisError as error:
            _log.debug("progress was not told: %s", error)

    def show(self, batch_id: int, event: dict[str, Any]) -> None:
        """A preview, for those who asked for them."""
        try:
            self._client.publish(previews(batch_id), json.dumps(event))
        except RedisError as error:
            _log.debug("a preview of batch %s was not shown: %s", batch_id, error)

    def watched(self) -> frozenset[int]:
        """The batches whose previews somebody listens to."""
        try:
            found = self._client.pubsub_channels(f"{_PREVIEWS}*")
        except RedisError:
            return frozenset()
        names = [name.decode() if isinstance(name, bytes) else name for name in found]
        return frozenset(int(name.removeprefix(_PREVIEWS)) for name in names)

    def close(self) -> None:
        self._client.close()


async def progress_events(
    broker_url: str, batch_id: int, *, pictures: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """What is told of a batch from now on; goes on for ever, and reconnects by itself.

    Args:
        pictures: previews too. Workers make them only while somebody asks for them.
    """
    channels = [channel(batch_id), *([previews(batch_id)] if pictures else [])]
    while True:
        client = redis.asyncio.Redis.from_url(
            client_url(broker_url), socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        try:
            async with client, client.pubsub() as pubsub:
                await pubsub.subscribe(*channels)
                async for message in pubsub.listen():
                    if message["type"] == "message":
                        yield json.loads(message["data"])
        except (RedisError, OSError) as error:
            _log.debug("progress of batch %s is out of reach: %s", batch_id, error)
        await asyncio.sleep(_RECONNECT)


def answers(broker_url: str) -> bool:
    """Whether the broker can be reached now."""
    with redis.Redis.from_url(client_url(broker_url), **_TIMEOUTS) as client:
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False
