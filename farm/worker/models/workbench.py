"""Where forwards are made ready: compiled on threads, recorded on the engine's own."""

from __future__ import annotations

import threading

WORKBENCH = threading.Lock()
"""Held while one thing is compiled or recorded, of whatever checkpoint: a compiler tries out what
it makes, and a recording must be the only thing that is queued. Threads that compile wait for it;
a forward never does, and is recorded some other time."""
