"""What lies on a device beside checkpoints."""

from __future__ import annotations

from typing import Protocol


class Guest(Protocol):
    """Weights that came for some work between two steps, and may wait there for more of it."""

    @property
    def bytes(self) -> int:
        """Memory of the device that they take now."""

    def leave(self) -> bool:
        """Let go of it until there is work again; False where there was none."""
