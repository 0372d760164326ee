"""Tells how far running jobs are, and shows them to those who look, while the engine goes on."""

from __future__ import annotations

import base64
import io
import threading
from typing import TYPE_CHECKING

from PIL import Image

from farm.broker.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

INTERVAL = 0.5
"""Seconds between two reports of a job."""


class Reporter:
    """Keeps the latest step and picture of each job and tells them twice a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._latest: dict[str, tuple[int, int]] = {}
        self._shown: dict[str, tuple[int, int, Tensor]] = {}
        self._watched: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="reporter", daemon=True).start()

    def __call__(self, key: str, step: int, steps: int) -> None:
        """The engine's news: attempt ``key`` (``12-3.1``) has done ``step`` of ``steps``."""
        with self._lock:
            self._latest[key] = (step, steps)

    def watched(self, key: str) -> bool:
        """Whether anybody looks at pictures of the attempt's batch."""
        return _batch(key) in self._watched

    def show(self, key: str, step: int, steps: int, picture: Tensor) -> None:
        """What attempt ``key`` looks like at ``step``: [h, w, 3] uint8 on the CPU."""
        with self._lock:
            self._shown[key] = (step, steps, picture)

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._watched = self._progress.watched()
            with self._lock:
                latest, self._latest = self._latest, {}
                shown, self._shown = self._shown, {}
            for key, (step, steps) in latest.items():
                event = {"job": key.partition(".")[0], "step": step, "steps": steps}
                self._progress.tell(_batch(key), event)
            for key, (step, steps, picture) in shown.items():
                event = {"job": key.partition(".")[0], "step": step, "steps": steps}
                self._progress.show(_batch(key), {**event, "image": _data_url(picture)})


def _batch(key: str) -> int:
    return int(key.partition("-")[0])


def _data_url(picture: Tensor) -> str:
    out = io.BytesIO()
    Image.fromarray(picture.numpy()).save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
