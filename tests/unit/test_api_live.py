"""A batch as a stream: Postgres decides, the broker only makes it livelier."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from farm.api import live
from farm.api.schemas.batches import Batch
from farm.errors import Unavailable

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "OFTEN", 0.01)
    monkeypatch.setattr(live, "SELDOM", 0.02)


def batch(succeeded: int, *, total: int = 3, eta: str | None = None) -> Batch:
    counts = {"pending": total - succeeded, "running": 0, "failed": 0, "cancelled": 0}
    return Batch.model_validate(
        {
            "id": "7",
            "name": "two\u2028lines",
            "user": "local",
            "tags": [],
            "keep": False,
            "output": {"format": "png"},
            "state": "running",
            "ended": succeeded == total,
            "priority": 50,
            "total": total,
            "counts": {**counts, "succeeded": succeeded},
            "created_at": "2026-01-01T00:00:00Z",
            "ended_at": None,
            "eta": eta
            and {"p50": eta, "p90": eta, "p50_seconds": 1.0, "p90_seconds": 2.0, "measured": True},
            "links": {},
        }
    )


def looks(*steps: Batch | Exception) -> Callable[[], Batch]:
    """Gives the steps one after the other, the last one for ever."""
    left = iter(steps)
    last = steps[-1]

    def look() -> Batch:
        step = next(left, last)
        if isinstance(step, Exception):
            raise step
        return step

    return look


async def silence() -> AsyncIterator[dict[str, Any]]:
    await asyncio.Event().wait()
    yield {}


async def broken() -> AsyncIterator[dict[str, Any]]:
    raise ConnectionError("no broker")
    yield {}


def told(look: Callable[[], Batch], progress: live.Progress = silence) -> Told:
    async def collect() -> Told:
        events = [event async for event in live.follow(look, progress)]
        assert len(asyncio.all_tasks()) == 1, "the listener is left behind"
        return [(event.event, json.loads(event.data)) for event in events]

    return asyncio.run(collect())


def names(events: Told) -> Iterator[str]:
    return (name for name, _ in events)


def test_each_change_is_told_once_and_then_the_end() -> None:
    events = told(looks(batch(0), batch(0), batch(1), batch(1), batch(3)))
    assert list(names(events)) == ["batch", "batch", "batch", "end"]
    assert [data["counts"]["succeeded"] for _, data in events] == [0, 1, 3, 3]


def test_when_it_will_end_is_told_with_changes_but_is_none() -> None:
    early, late = "2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"
    events = told(looks(batch(0, eta=early), batch(0, eta=late), batch(1, eta=late), batch(3)))
    assert [data["eta"] and data["eta"]["p50"] for _, data in events] == [early, late, None, None]


def test_a_batch_that_has_ended_is_told_at_once() -> None:
    assert list(names(told(looks(batch(3))))) == ["batch", "end"]


def test_it_works_without_a_broker() -> None:
    assert list(names(told(looks(batch(0), batch(3)), broken))) == ["batch", "batch", "end"]


def test_it_outlives_an_outage_of_postgres() -> None:
    events = told(looks(batch(0), Unavailable("gone"), Unavailable("gone"), batch(3)))
    assert list(names(events)) == ["batch", "batch", "end"]


def test_progress_is_passed_on() -> None:
    async def progress() -> AsyncIterator[dict[str, Any]]:
        yield {"job": "7-0", "step": 1, "steps": 2}
        yield {"job": "7-0", "state": "succeeded"}

    events = told(looks(batch(0), batch(0), batch(3)), progress)
    assert [data for name, data in events if name == "progress"] == [
        {"job": "7-0", "step": 1, "steps": 2},
        {"job": "7-0", "state": "succeeded"},
    ]


def test_a_flood_of_progress_neither_blocks_nor_grows() -> None:
    sent = 0

    async def flood() -> AsyncIterator[dict[str, Any]]:
        nonlocal sent
        for sent in range(50_000):
            yield {"step": sent}
        await asyncio.Event().wait()

    events = told(looks(batch(0), batch(3)), flood)
    assert list(names(events))[-1] == "end"


def test_events_are_ascii_so_that_no_client_splits_them() -> None:
    async def encoded() -> list[bytes]:
        return [event.encode() async for event in live.follow(looks(batch(3)), silence)]

    assert all(event.isascii() for event in asyncio.run(encoded()))
