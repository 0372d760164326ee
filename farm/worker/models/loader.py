"""Checkpoint files into memory, with no network and no pickle."""

from __future__ import annotations

import torch

from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.catalogue import CheckpointFile
from farm.worker.models.checkpoint import Checkpoint


def load(file: CheckpointFile, profile: MemoryProfile, device: torch.device) -> Checkpoint:
    """Read ``file`` onto ``device`` in the profile's precision.

    Raises:
        CheckpointError: the file is damaged, incomplete, of an unsupported kind, or changed
            while it was read.
    """
    raise NotImplementedError
