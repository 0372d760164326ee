"""The engine: many jobs at once on one device. It can be used as a library::

    from farm.worker.engine import Engine

    with Engine(models, profile, device) as engine:
        rendered = engine.submit("one", spec).result()

Torch is imported with the first name taken from here, so that the pure parts
(``batcher``, ``requests``) do without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farm.worker.engine.engine import Engine
    from farm.worker.engine.pulse import Counters, Heartbeat
    from farm.worker.engine.stats import EngineStats, Rendered

__all__ = ["Counters", "Engine", "EngineStats", "Heartbeat", "Rendered"]

_HOMES = {
    "Counters": "pulse",
    "Engine": "engine",
    "EngineStats": "stats",
    "Heartbeat": "pulse",
    "Rendered": "stats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
