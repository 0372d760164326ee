"""Orders: load a checkpoint ahead of its jobs, let go of one, tell what was done, show that one
makes right pictures, measure what work takes, show what lies in the card's memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from farm.errors import Conflict, FarmError
from farm.storage import ImageStore, report_path, snapshot_path, trace_path
from farm.worker import canary
from farm.worker.engine.timeline import chrome_trace

if TYPE_CHECKING:
    from farm.worker.accountant import Accountant
    from farm.worker.engine import Engine
    from farm.worker.memory.snapshot import Snapshots
    from farm.worker.models.cache import ModelCache

_log = logging.getLogger(__name__)


class Orders:
    """Carries orders out one after the other, beside the images under way.

    Args:
        worker: whose timeline a trace shows.
        store: where traces, reports and snapshots go.
        snapshots: of the worker's device.
        accountant: told of loads that no attempt waits for.
        answer: is told what the canaries came out as, see :func:`farm.db.health.answer`.

    Attributes:
        refused: subject to the reason why the last order about it was not carried out.
    """

    def __init__(
        self,
        models: ModelCache,
        engine: Engine,
        store: ImageStore,
        *,
        worker: str,
        accountant: Accountant,
        snapshots: Snapshots,
        answer: Callable[[dict[str, Any]], None],
    ) -> None:
        self._models = models
        self._engine = engine
        self._store = store
        self._worker = worker
        self._accountant = accountant
        self._snapshots = snapshots
        self._answer = answer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="orders")
        self.refused: dict[str, str] = {}

    def obey(self, action: str, subject: str) -> None:
        """Do it soon, see :mod:`farm.db.orders`."""
        self._pool.submit(self._carry_out, action, subject)

    def stop(self) -> None:
        """Forget what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, action: str, subject: str) -> None:
        try:
            {
                "warm": self._warm,
                "evict": self._models.evict,
                "trace": self._trace,
                "canary": self._canary,
                "calibrate": self._calibrate,
                "memory": self._memory,
            }[action](subject)
        except FarmError as error:
            _log.warning("%s %s: %s", action, subject, error)
            self.refused = {**self.refused, subject: str(error)}
        except Exception as error:
            _log.exception("%s %s", action, subject)
            self.refused = {**self.refused, subject: f"{type(error).__name__}: {error}"}
        else:
            self.refused = {name: why for name, why in self.refused.items() if name != subject}

    def _warm(self, checkpoint: str) -> None:
        with self._accountant.aside(checkpoint):
            self._models.warm(checkpoint)

    def _canary(self, _: str) -> None:
        try:
            told: dict[str, Any] = {"fields": canary.make(self._engine)}
        except Exception as error:
            _log.exception("the canaries failed")
            told = {"error": f"{type(error).__name__}: {error}"}
        self._answer(told)

    def _trace(self, id: str) -> None:
        trace = chrome_trace(self._engine.timeline.spans(), process=self._worker)
        self._store.put(trace_path(id), json.dumps(trace).encode())

    def _calibrate(self, subject: str) -> None:
        def calibrate(_: str, asked: Mapping[str, Any]) -> dict[str, Any]:
            checkpoint = asked.get("checkpoint") or self._last_used()
            self._warm(checkpoint)
            sizes = [(width, height) for width, height in asked.get("sizes", ())]
            found = self._engine.calibrate(checkpoint, sizes)
            return {"checkpoint": checkpoint, "calls": [asdict(each) for each in found]}

        self._report(subject, calibrate)

    def _memory(self, subject: str) -> None:
        def memory(id: str, asked: Mapping[str, Any]) -> dict[str, Any]:
            content = self._snapshots.take(seconds=asked.get("seconds", 0.0))
            self._store.put(snapshot_path(id), content)
            recorded = dict(self._models.recorded)
            return {"path": snapshot_path(id), "bytes": len(content), "recorded": recorded}

        self._report(subject, memory)

    def _report(
        self, subject: str, make: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    ) -> None:
        """Write what comes of an order, or why nothing does, for the one who waits for it."""
        id, _, asked = subject.partition(" ")
        try:
            made = make(id, json.loads(asked or "{}"))
        except FarmError as error:
            made = {"error": error.to_dict()}
        except Exception as error:
            _log.exception("no report %s", id)
            made = {"error": {"detail": f"{type(error).__name__}: {error}"}}
        report = {"worker": self._worker, **made}
        self._store.put(report_path(id), json.dumps(report).encode())

    def _last_used(self) -> str:
        resident = self._models.resident
        if not resident:
            raise Conflict(
                f"{self._worker} holds no checkpoint.",
                field="checkpoint",
                remedy="Name one to load, or `farm model warm` it.",
            )
        return resident[-1]
