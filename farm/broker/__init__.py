"""The broker: what is sent over Redis or Valkey. It carries seconds of work and may lose it."""

from farm.broker.progress import Progress, progress_events

__all__ = ["Progress", "progress_events"]
