"""The Celery side of a worker: a thin task that hands attempts to threads of their own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_shutting_down
from kombu.transport.redis import Channel

from farm.broker.queue import RENDER, celery_app, queue_name

_log = logging.getLogger(__name__)


def consume(
    broker_url: str,
    session_id: str,
    *,
    concurrency: int,
    run: Callable[[int, int, int], None],
    drain: Callable[[], None],
) -> None:
    """Run the attempts sent to this session until SIGTERM, then the running ones to their end.

    Celery starts one task for many attempts, as what it does for a task takes longer than all
    that the queue does for an attempt.

    Args:
        concurrency: attempts at once; as many as the session can be sent, so that none waits here.
        drain: called once, in the signal handler, when the stop begins.
    """
    app = celery_app(broker_url)
    attempts = ThreadPoolExecutor(concurrency, thread_name_prefix="attempt")

    def attempt(batch_id: int, ord: int, number: int) -> None:
        try:
            run(batch_id, ord, number)
        except Exception:
            _log.exception("%d-%d.%d was left as it was", batch_id, ord, number)

    @app.task(name=RENDER)  # type: ignore[untyped-decorator]
    def render(sent: Sequence[tuple[int, int, int]]) -> None:
        for each in sent:
            attempts.submit(attempt, *each)

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
    with attempts:
        app.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=threads",
                "--concurrency=1",
                f"--hostname={session_id}@%h",
                f"--queues={queue_name(session_id)}",
                "--loglevel=WARNING",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ]
        )
