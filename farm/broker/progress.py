"""Progress over pub/sub: live, cheap, and allowed to get lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from time import monotonic
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_log = logging.getLogger(__name__)

_PREVIEWS = "farm:previews:"
_RECONNECT = 1.0
_PATIENCE = 1.0
_SILENCE = 2.0
"""Seconds in which a broker that did not answer is told nothing."""
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
        self._client = redis.Redis.from_url(
            client_url(broker_url), socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE
        )
        self._silent_until = 0.0

    def tell(self, batch_id: int, event: dict[str, Any]) -> None:
        self._ask(lambda client: client.publish(channel(batch_id), json.dumps(event)))

    def tell_all(self, events: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """The same for several, each with its batch, in one message to the broker."""

        def publish(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as together:
                for batch_id, event in events:
                    together.publish(channel(batch_id), json.dumps(event))
                together.execute()

        self._ask(publish)

    def show(self, batch_id: int, event: dict[str, Any]) -> None:
        """A preview, for those who asked for them."""
        self._ask(lambda client: client.publish(previews(batch_id), json.dumps(event)))

    def watched(self) -> frozenset[int]:
        """The batches whose previews somebody listens to."""
        found = self._ask(lambda client: client.pubsub_channels(f"{_PREVIEWS}*")) or []
        names = [name.decode() if isinstance(name, bytes) else name for name in found]
        return frozenset(int(name.removeprefix(_PREVIEWS)) for name in names)

    def _ask(self, ask: Callable[[redis.Redis], Any]) -> Any:
        """What the broker says; nothing where it does not answer, and for a while after that: who
        ends attempts would wait with each group of them."""
        if monotonic() < self._silent_until:
            return None
        try:
            return ask(self._client)
        except RedisError as error:
            self._silent_until = monotonic() + _SILENCE
            _log.debug("the broker is told nothing for %.0f s: %s", _SILENCE, error)
            return None

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
