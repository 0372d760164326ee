"""Tells how far running jobs are, without making the engine wait."""

from __future__ import annotations

import threading

from farm.broker.progress import Progress

INTERVAL = 0.5
"""Seconds between two reports of a job."""


class Reporter:
    """Keeps the latest step of each job and tells it twice a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._latest: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="reporter", daemon=True).start()

    def __call__(self, key: str, step: int, steps: int) -> None:
        """The engine's news: attempt ``key`` (``12-3.1``) has done ``step`` of ``steps``."""
        with self._lock:
            self._latest[key] = (step, steps)

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            with self._lock:
                latest, self._latest = self._latest, {}
            for key, (step, steps) in latest.items():
                job = key.partition(".")[0]
                batch_id = int(job.partition("-")[0])
                self._progress.tell(batch_id, {"job": job, "step": step, "steps": steps})
