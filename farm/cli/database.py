"""The database that a command works on itself, without the API."""

from __future__ import annotations

from farm.settings import Settings


def reachable(settings: Settings) -> str | None:
    """The URL of the database that is set, or of the farm that runs on this machine; None for
    neither."""
    # Imported here: the embedded farm brings in servers that most commands do not need.
    from farm.embedded import home, sockets

    if settings.database_url is None and home.running(settings.home):
        return sockets.urls(settings.home)[0]
    return settings.database_url


def needed(settings: Settings) -> str:
    """The same.

    Raises:
        SetupError: there is neither.
    """
    return reachable(settings) or settings.required("database_url")
