"""Starts processes, restarts what dies, stops them in order, and leaves none behind.

Every child holds the read end of a pipe whose write end only the supervisor holds: its
lifeline. However the supervisor ends, ``kill -9`` included, the pipe closes and
:func:`watch_lifeline` ends the child.
"""

from farm.supervisor.child import Backoff, Process
from farm.supervisor.lifeline import watch_lifeline
from farm.supervisor.supervisor import Supervisor

__all__ = ["Backoff", "Process", "Supervisor", "watch_lifeline"]
