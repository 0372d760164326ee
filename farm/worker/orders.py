"""Orders: load a checkpoint ahead of its jobs, let go of one, tell what was done, show that one
makes right pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from farm.errors import FarmError
from farm.storage import ImageStore, trace_path
from farm.worker import canary
from farm.worker.engine.timeline import chrome_trace

if TYPE_CHECKING:
    from farm.worker.accountant import Accountant
    from farm.worker.engine import Engine
    from farm.worker.models.cache import ModelCache

_log = logging.getLogger(__name__)


class Orders:
    """Carries orders out one after the other, beside the images under way.

    Args:
        worker: whose timeline a trace shows.
        store: where traces go.
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
        answer: Callable[[dict[str, Any]], None],
    ) -> None:
        self._models = models
        self._engine = engine
        self._store = store
        self._worker = worker
        self._accountant = accountant
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
