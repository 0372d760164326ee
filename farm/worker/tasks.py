"""The Celery side of a worker: a thin task that waits while the engine works."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_shutting_down
from kombu.transport.redis import Channel

from farm.broker.queue import RENDER, celery_app, queue_name


def consume(
    broker_url: str,
    session_id: str,
    *,
    concurrency: int,
    run: Callable[[int, int, int], None],
    drain: Callable[[], None],
) -> None:
    """Run the attempts sent to this session until SIGTERM, then the running ones to their end.

    ``drain`` is called once, in the signal handler, when the stop begins.
    """
    app = celery_app(broker_url)

    @app.task(name=RENDER)  # type: ignore[untyped-decorator]
    def render(batch_id: int, ord: int, attempt: int) -> None:
        run(batch_id, ord, attempt)

    def stopping(**_: object) -> None:
        drain()

    worker_shutting_down.connect(stopping)
    # A session's queue ends with it, so that nothing need be put back there, least of all into a
    # broker that has just died.
    Channel.do_restore = False
    # It warns of running as root, which is a risk where messages are pickles; ours are JSON. And of
    # a setting that we have set, whenever the broker is lost.
    for known in (SecurityWarning, CPendingDeprecationWarning):
        warnings.simplefilter("ignore", known)
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={concurrency}",
            f"--hostname={session_id}@%h",
            f"--queues={queue_name(session_id)}",
            "--loglevel=WARNING",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )
