"""How many rows a forward may have: predicted first, corrected by what failed."""

from __future__ import annotations

from farm.worker.engine.requests import Denoise
from farm.worker.memory.planner import check_fits, peak_bytes, rows_allowed
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint


class RowLimits:
    """Rows allowed for each checkpoint and size on one device."""

    def __init__(self, models: ModelCache, profile: MemoryProfile) -> None:
        self._models = models
        self._profile = profile
        self._rows: dict[tuple[str, int, int], int] = {}

    def check(self, checkpoint: Checkpoint, request: Denoise) -> None:
        """Raise :class:`farm.errors.DoesNotFit` if this size does not fit beside the weights."""
        check_fits(
            self._profile,
            checkpoint.family,
            request.width,
            request.height,
            weights_bytes=self._models.bytes,
        )

    def allowed(self, name: str, width: int, height: int) -> int:
        """Most rows of one forward, at least 1; ``name`` must be resident.

        Counted beside all the weights the profile may ever hold, not those it holds now: a
        ``strict`` job pins this number, so it must not depend on who else is here.
        """
        shape = (name, width, height)
        if shape not in self._rows:
            rows = rows_allowed(
                self._profile,
                self._models.get(name).family,
                width,
                height,
                weights_bytes=self._profile.weights_bytes,
            )
            self._rows[shape] = max(1, rows)
        return self._rows[shape]

    def beside(self, pixels: int, name: str, width: int, height: int) -> bool:
        """Whether a picture of so many pixels can be decoded while as many rows of this
        checkpoint and size as are allowed are denoised; ``name`` must be resident."""
        peak = peak_bytes(
            self._profile,
            self._models.get(name).family,
            width * height,
            self.allowed(name, width, height),
            weights_bytes=self._profile.weights_bytes,
            beside=pixels,
        )
        return peak <= self._profile.memory_bytes

    def shed(self) -> bool:
        """Have checkpoints that are not in use leave; False if there are none."""
        return self._models.shed()

    def halve(self, name: str, width: int, height: int, *, rows: int) -> bool:
        """Remember that ``rows`` of this size ran out of memory; False if fewer cannot be."""
        if rows == 1:
            return False
        self._rows[name, width, height] = rows // 2
        return True
