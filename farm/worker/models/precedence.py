"""Loads that somebody waits for go before those that nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from farm.errors import DoesNotFit, Unavailable

TRIES = 5
"""Times that a load nobody waits for is begun, if others have to be loaded meanwhile."""


class _GaveWay(DoesNotFit):
    """It has made room for another one; what left for it does not come back."""


class Precedence:
    """Who waits for which checkpoint. Safe with threads.

    Attributes:
        short: the device has run out of memory, so that loads nobody waits for are given up.
        hurried: names that somebody waits for.
    """

    def __init__(self) -> None:
        self.short = False
        self.hurried: list[str] = []
        self._told = threading.Condition()

    @contextmanager
    def hurry(self, name: str) -> Iterator[None]:
        """In the block somebody waits for it, so that no load of another one goes on which nobody
        waits for."""
        with self._told:
            self.hurried.append(name)
        try:
            yield
        finally:
            with self._told:
                self.hurried.remove(name)
                self._told.notify_all()

    def patiently(self, name: str, load: Callable[[], object]) -> None:
        """Load something that nobody waits for; begun anew where it had to give way.

        Raises:
            Unavailable: others had to be loaded each time.
        """
        for _ in range(TRIES):
            with self._told:
                self._told.wait_for(lambda: not self.hurried)
            with suppress(_GaveWay):
                load()
                return
        raise Unavailable(
            f"{name} was not loaded: each time jobs came that had to wait for another checkpoint.",
            field="checkpoint",
            value=name,
            remedy="Warm it when there is less to do.",
        )

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """A turn of a load that nobody waits for, unless somebody has come to.

        Raises:
            DoesNotFit: it is given up.
        """
        if set(self.hurried) - {name}:
            raise _GaveWay("Others have to be loaded first.")
        if self.short:
            raise DoesNotFit(
                "It was given up, as the device ran out of memory for its jobs.",
                field="checkpoint",
                remedy="Warm it when there is less to do.",
            )
        yield
