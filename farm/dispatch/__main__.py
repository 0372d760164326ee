"""``python -m farm.dispatch``: the dispatcher process."""

from __future__ import annotations

import gc
import signal
import threading
import uuid

from farm import log
from farm.broker.queue import Publisher
from farm.db.database import POOLS, Database
from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.housekeeping import Housekeeper, Keep
from farm.dispatch.store import opened
from farm.settings import Settings
from farm.supervisor import watch_lifeline


def main() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    settings = Settings()
    log.configure("dispatcher", level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    gc.freeze()  # else each full collection walks all libraries
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    name = f"farm-dispatcher-{uuid.uuid4().hex[:12]}"  # no two alike, see farm.db.leader
    url = settings.required("database_url")
    with Database(url, max_size=POOLS["dispatcher"], name=name) as db:
        publisher = Publisher(settings.required("broker_url"))
        keep = Keep(batches=settings.keep_days, attempts=settings.keep_attempts_days)
        housekeeper = Housekeeper(opened(db, settings.storage_url), publisher, keep)
        Dispatcher(db, publisher, housekeeper).run(stop)
        publisher.close()


if __name__ == "__main__":
    main()
