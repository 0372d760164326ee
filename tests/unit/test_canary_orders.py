"""A worker that is told to make its canaries answers, whatever happens."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np

from farm.spec.canary import CANARIES, SIDE
from farm.spec.job import JobSpec
from farm.worker.orders import Orders
from tests.conftest import eventually


class Engine:
    """Paints each canary grey, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def submit(self, key: str, spec: JobSpec) -> Future[Any]:
        self.asked.append(key)
        made: Future[Any] = Future()
        if self.error:
            made.set_exception(self.error)
        else:
            image = np.full((spec.height, spec.width, 3), 128, np.uint8)
            made.set_result(SimpleNamespace(image=image))
        return made


def answered(engine: Engine) -> dict[str, Any]:
    told: list[dict[str, Any]] = []
    unused: Any = Mock()
    orders = Orders(
        unused,
        engine,  # type: ignore[arg-type]
        unused,
        worker="gpu0",
        accountant=unused,
        snapshots=unused,
        answer=told.append,
    )
    orders.obey("canary", "demo")
    eventually(lambda: told, within=20)
    orders.stop()
    return told[0]


def test_it_tells_what_they_look_like() -> None:
    engine = Engine()
    assert answered(engine) == {"fields": [[128.0] * 3 * SIDE**2] * len(CANARIES)}
    assert len(set(engine.asked)) == len(CANARIES)
    assert all(key.startswith("0-") for key in engine.asked), "of no batch that there is"


def test_it_tells_when_it_cannot() -> None:
    told = answered(Engine(RuntimeError("the card is gone")))
    assert told == {"error": "RuntimeError: the card is gone"}
