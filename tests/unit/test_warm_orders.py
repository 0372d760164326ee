"""Warming gives way: to what jobs need, which the engine tells."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from farm.worker.orders import Orders
from tests.conftest import eventually
from tests.engine_bench import Bench
from tests.fake_disk import Disk, make_cache
from tests.fake_models import FakeCheckpoint, spec


def test_the_engine_tells_what_jobs_need_and_when_none_is_left() -> None:
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"))
    needed: list[set[str]] = []
    bench.checkpoint.fault = lambda what, seen: needed.append(bench.models.needed)
    bench.render(spec(), spec(checkpoint="other"))
    assert needed[0] == {"fake", "other"}
    bench.core.rest()
    assert bench.models.needed == set()


def test_a_warm_that_does_not_fit_beside_jobs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(Disk.installed(monkeypatch))
    cache.get("a")
    cache.need({"a"})
    unused: Any = MagicMock()
    orders = Orders(
        cache,
        unused,
        unused,
        worker="gpu0",
        accountant=unused,
        snapshots=unused,
        answer=unused,
    )
    orders.obey("warm", "large")
    eventually(lambda: "large" in orders.refused)
    assert "beside a, in use" in orders.refused["large"]
    assert cache.resident == ("a",)
    cache.need(())
    orders.obey("warm", "large")
    eventually(lambda: not orders.refused)
    assert cache.resident == ("large",)
    orders.stop()
