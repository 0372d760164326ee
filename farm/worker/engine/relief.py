"""Making room on a device whose memory ran out."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

from farm.worker.memory.exhaustion import HostExhausted, out_of_memory

log = logging.getLogger(__name__)

T = TypeVar("T")


class Shedding(Protocol):
    """What can make room, see :meth:`farm.worker.models.cache.ModelCache.shed`."""

    def shed(self) -> bool:
        """Give up what is needed least; False where nothing is left to give up."""

    def shed_host(self) -> bool:
        """The same for the host's memory."""


def relieved(models: Shedding, work: Callable[[], T]) -> T:
    """What ``work`` makes; tried again with more room as long as memory runs out and there is
    something left to give up."""
    while True:
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error) or not made_room(models, error):
                raise
            traceback.clear_frames(error.__traceback__)
            log.warning("memory ran out, what is needed least leaves: %r", error)


def made_room(models: Shedding, error: Exception) -> bool:
    """Give up what is needed least of the memory that ran out; False where nothing is left."""
    return models.shed_host() if isinstance(error, HostExhausted) else models.shed()
