"""``python -m farm.dispatch``: the dispatcher process."""

from __future__ import annotations

import signal
import threading

from farm import log
from farm.broker.queue import Publisher
from farm.db.database import Database
from farm.dispatch.dispatcher import Dispatcher
from farm.settings import Settings
from farm.supervisor import watch_lifeline


def main() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    settings = Settings()
    log.configure("dispatcher", level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with Database(settings.required("database_url"), max_size=2, name="farm-dispatcher") as db:
        publisher = Publisher(settings.required("broker_url"))
        Dispatcher(db, publisher).run(stop)
        publisher.close()


if __name__ == "__main__":
    main()
