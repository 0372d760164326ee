"""Checkpoints read into host memory while the device works, for those who will need them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from farm.errors import FarmError
from farm.worker.models.reader import Turn

log = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[str, Sequence[str], Turn], bool]

_POLITE = 10


class Prefetcher:
    """Fetches what is wanted, one at a time, on a thread that lives as long as there is work.

    It reads with one thread, and stands still while others read from disk. Once somebody waits for
    what it reads, it reads as fast as they would. Safe with threads.

    Args:
        missing: whether a name should be fetched now.
        fetch: is given a name, the names that are wanted sooner, and what to enter for each
            tensor; says whether there was room. It runs on the thread.
    """

    def __init__(self, missing: Callable[[str], bool], fetch: Fetch) -> None:
        self._missing = missing
        self._fetch = fetch
        self._state = threading.Condition()
        self._wanted: tuple[str, ...] = ()
        self._failed: set[str] = set()
        self._unroomed: set[str] = set()
        self._fetching: str | None = None
        self._alive = False
        self._hurried = False
        self._reading = self._others = 0

    @property
    def busy(self) -> bool:
        """Whether it reads."""
        return self._fetching is not None

    def want(self, names: Sequence[str]) -> None:
        """These are needed next, in this order, and nothing else. What is being read is read to
        its end all the same, as somebody will want it again."""
        with self._state:
            if tuple(names) != self._wanted:
                self._wanted = tuple(names)
                self._failed &= set(names)
                self._unroomed.clear()
            if not self._alive and self._next() is not None:
                self._alive = True
                threading.Thread(target=self._run, name="prefetch", daemon=True).start()

    def join(self, name: str) -> None:
        """If this is being read, wait for its end, which now comes as soon as it can."""
        with self._state:
            if self._fetching == name:
                self._hurried = True
                self._state.notify_all()
                self._state.wait_for(lambda: self._fetching != name)

    @contextmanager
    def standing_aside(self) -> Iterator[None]:
        """In the block others read from disk."""
        with self._state:
            self._others += 1
        try:
            yield
        finally:
            with self._state:
                self._others -= 1
                self._state.notify_all()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _POLITE)
        while True:
            with self._state:
                name = self._fetching = self._next()
                if name is None:
                    self._alive = False
                    return
                sooner = self._wanted[: self._wanted.index(name)]
            vain = self._vain(name, sooner)
            with self._state:
                if vain is not None and name in self._wanted:
                    vain.add(name)
                self._fetching, self._hurried = None, False
                self._state.notify_all()

    def _vain(self, name: str, sooner: Sequence[str]) -> set[str] | None:
        """Fetch it. What it belongs to, if that was in vain."""
        try:
            return None if self._fetch(name, sooner, self._turn) else self._unroomed
        except FarmError as error:  # its jobs will be told when it is loaded for them
            log.info("%s was not read ahead: %s", name, error)
        except Exception:
            log.exception("%s was not read ahead", name)
        return self._failed

    def _next(self) -> str | None:
        vain = self._failed | self._unroomed
        wanted = (name for name in self._wanted if name not in vain)
        return next((name for name in wanted if self._missing(name)), None)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._state:
            self._state.wait_for(lambda: self._hurried or not (self._reading or self._others))
            self._reading += 1
        try:
            yield
        finally:
            with self._state:
                self._reading -= 1
                self._state.notify_all()
