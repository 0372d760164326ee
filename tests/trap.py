"""A pickle that does something when it is loaded."""

from __future__ import annotations

import os
from pathlib import Path


class Trap:
    """It makes a folder when anything loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)
