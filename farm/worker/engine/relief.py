"""Making room on a device whose memory ran out."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.models.cache import ModelCache

log = logging.getLogger(__name__)

T = TypeVar("T")


def relieved(models: ModelCache, work: Callable[[], T]) -> T:
    """What ``work`` makes; once more without the checkpoints that nobody uses, where memory ran
    out."""
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error) or not models.shed():
            raise
        traceback.clear_frames(error.__traceback__)
        log.warning("memory ran out, checkpoints that are not in use leave: %r", error)
    return work()
