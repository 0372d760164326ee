"""``python -m farm.api``: one API process."""

from __future__ import annotations

import gc

import uvicorn

from farm import log
from farm.api.app import create_app
from farm.api.deps import Services
from farm.db.database import POOLS, Database
from farm.settings import Settings
from farm.storage import ImageStore
from farm.supervisor import watch_lifeline

LONGEST = 30.0
"""Seconds that a statement may take: clients wait no longer, and whoever asks the same again and
again must not keep Postgres from those who work."""
FROZEN = 4.0
"""Seconds after which a transaction is undone in which this process does nothing, as one that is
frozen: it may have a user's row, for whom others submit. They wait a second longer than that."""


def main() -> None:
    settings = Settings()
    log.configure("api", level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    gc.freeze()  # else each full collection walks all libraries, and requests wait
    url = settings.required("database_url")
    most = POOLS["api"]
    with Database(url, max_size=most, name="farm api", longest=LONGEST, idle=FROZEN) as db:
        services = Services(
            db=db,
            images=ImageStore(settings.storage_url),
            broker_url=settings.required("broker_url"),
            local=settings.local,
            output=settings.output,
            quota=settings.quota_jobs,
            streams=settings.streams,
            streams_each=settings.streams_each,
        )
        uvicorn.run(
            create_app(services),
            host=settings.host,
            port=settings.port,
            access_log=False,
            log_config=None,
            # Long event streams must not hold up a restart.
            timeout_graceful_shutdown=3,
        )


if __name__ == "__main__":
    main()
