"""The child's end of its lifeline."""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "FARM_LIFELINE"
"""Names the environment variable with the pipe's file descriptor."""


def watch_lifeline(grace: float = 10.0) -> None:
    """In a child: when the supervisor is gone, end by SIGTERM, and after ``grace`` s at once.

    Does nothing in a process that no supervisor started.
    """
    # Taken out, because our own children do not inherit the pipe.
    lifeline = os.environ.pop(VARIABLE, None)
    if lifeline is None:
        return

    def watch(pipe: int) -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, args=(int(lifeline),), name="lifeline", daemon=True).start()
