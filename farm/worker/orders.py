"""Orders from people: load a checkpoint ahead of its jobs, or let go of one."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from farm.errors import FarmError
from farm.worker.models.cache import ModelCache

_log = logging.getLogger(__name__)


class Orders:
    """Carries orders out one after the other, beside the images under way.

    Attributes:
        refused: checkpoint to the reason why the last order about it was not carried out.
    """

    def __init__(self, models: ModelCache) -> None:
        self._models = models
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="orders")
        self.refused: dict[str, str] = {}

    def obey(self, action: str, checkpoint: str) -> None:
        """Do it soon. ``action`` is ``warm`` or ``evict``."""
        self._pool.submit(self._carry_out, action, checkpoint)

    def stop(self) -> None:
        """Forget what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, action: str, checkpoint: str) -> None:
        try:
            if action == "warm":
                self._models.warm(checkpoint)
            else:
                self._models.evict(checkpoint)
        except FarmError as error:
            _log.warning("%s %s: %s", action, checkpoint, error)
            self.refused = {**self.refused, checkpoint: str(error)}
        except Exception as error:
            _log.exception("%s %s", action, checkpoint)
            self.refused = {**self.refused, checkpoint: f"{type(error).__name__}: {error}"}
        else:
            left = {name: why for name, why in self.refused.items() if name != checkpoint}
            self.refused = left
