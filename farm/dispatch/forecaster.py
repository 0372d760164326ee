"""The leader writes down when batches are to end, and later when they did."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from farm.db import forecasts
from farm.db.database import Database
from farm.db.forecasts import Forecast, Moment
from farm.dispatch.outlook import FRESH, Outlook
from farm.errors import FarmError

_log = logging.getLogger(__name__)

_REST = 20.0
"""Seconds without forecasts for each that was spent on them."""


class Forecaster:
    """Forecasts each batch when it is first seen, and once more when half of it is left."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._outlook = Outlook(db)
        self._made: set[tuple[int, Moment]] = set()

    def note(self) -> None:
        """Judge the forecasts of batches that have ended; make those that are due."""
        forecasts.judge(self._db)
        picture = self._outlook.now()
        open_ids = {left.id for left in picture.left}
        self._made = {made for made in self._made if made[0] in open_ids}
        due: list[Forecast] = []
        for left in picture.left:
            moment: Moment = "half" if 2 * left.jobs <= left.total else "accepted"
            eta = picture.etas.get(left.id)
            if eta and left.jobs and (left.id, moment) not in self._made:
                model = picture.models[left.id]
                due.append(Forecast(left.id, moment, model, eta.p50, eta.p90))
        forecasts.make(self._db, due)
        self._made.update((forecast.batch_id, forecast.moment) for forecast in due)


@contextmanager
def forecasting(db: Database) -> Iterator[None]:
    """Forecast in a thread while the block runs; no job waits for it."""
    forecaster, stop = Forecaster(db), threading.Event()

    def run() -> None:
        pause = FRESH
        while not stop.wait(pause):
            began = monotonic()
            try:
                forecaster.note()
            except FarmError as error:
                _log.warning("no forecasts: %s", error)
            except Exception:
                _log.exception("no forecasts")
            # The same interpreter places jobs.
            pause = max(FRESH, _REST * (monotonic() - began))

    threading.Thread(target=run, name="forecaster", daemon=True).start()
    try:
        yield
    finally:
        # It is not waited for: when Postgres is away it may take a while to notice.
        stop.set()
