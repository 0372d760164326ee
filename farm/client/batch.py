"""A batch, as a client holds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from farm.client.job import Image, Job
from farm.client.transport import Transport
from farm.errors import TooManyStreams, Unavailable
from farm.spec.output import suffix_of

PATIENCE = 60.0
"""Seconds for which a lost farm may come back before waiting for it is given up."""

_PAUSE, _SELDOM = 0.5, 2.0
_PAGE = 200

Event = tuple[str, dict[str, Any]]


class Batch:
    """A batch; ``data`` is the API's newest answer about it."""

    def __init__(self, data: dict[str, Any], transport: Transport) -> None:
        self.data = data
        self._transport = transport

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def ended(self) -> bool:
        return bool(self.data["ended"])

    @property
    def total(self) -> int:
        return int(self.data["total"])

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.data["counts"])

    def refresh(self) -> Batch:
        self._take(self._transport.get(self._link("self")))
        return self

    def cancel(self) -> Batch:
        """Cancel what has not ended; images made so far stay."""
        self._take(self._transport.post(self._link("cancel")))
        return self

    def pause(self) -> Batch:
        """Begin no more of its jobs until :meth:`resume`."""
        self._take(self._transport.post(self._link("pause")))
        return self

    def resume(self) -> Batch:
        """Go on with a paused batch."""
        self._take(self._transport.post(self._link("resume")))
        return self

    def retry(self) -> int:
        """Try its failed jobs again, with a new budget each; how many."""
        answer = self._transport.post(self._link("retry"))
        self._take({name: part for name, part in answer.items() if name != "retried"})
        return int(answer["retried"])

    def set_priority(self, priority: int | str) -> Batch:
        """0 to 100, or interactive, normal or background."""
        self._take(self._transport.patch(self._link("self"), {"priority": priority}))
        return self

    def set_keep(self, keep: bool) -> Batch:
        """Never prune it, however old; or do."""
        self._take(self._transport.patch(self._link("self"), {"keep": keep}))
        return self

    def summary(self) -> dict[str, Any]:
        """Throughput, mean seconds of each stage, peak memory, images by worker."""
        return dict(self._transport.get(self._link("summary")))

    def events(self, *, previews: bool = False) -> Iterator[Event]:
        """Name and data of what happens, up to ``end``: ``batch`` on change, ``progress``.

        With ``previews`` also ``preview``: a small picture of a job under way, as a data URL.
        Opens the stream again when it breaks; Unavailable after PATIENCE seconds in vain. Where
        too many are open already it looks at the batch now and then, until one can be had.
        """
        lost = None
        address = self._link("events") + ("?previews=true" if previews else "")
        while True:
            try:
                for name, data in self._heard(address):
                    lost = None
                    yield name, data
                    if name == "end":
                        return
            except Unavailable:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > PATIENCE:
                    raise
            time.sleep(_PAUSE)

    def _heard(self, address: str) -> Iterator[Event]:
        try:
            for name, data in self._transport.events(address):
                if name in ("batch", "end"):
                    self._take(data)
                yield name, data
        except TooManyStreams:
            time.sleep(_SELDOM)
            yield "batch", self.refresh().data
            if self.ended:
                yield "end", self.data

    def wait(self, on_change: Callable[[Batch], object] | None = None) -> Batch:
        """Until the batch has ended, calling ``on_change`` whenever its counts moved."""
        for name, _ in self.events():
            if on_change and name == "batch":
                on_change(self)
        return self

    def jobs(self, state: str | None = None) -> Iterator[Job]:
        """Its jobs in order, as they are now; only those in ``state`` if given."""
        cursor = None
        while True:
            page = self._page(cursor, state)
            for data in page["jobs"]:
                yield Job(data, self._transport)
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def images(self) -> Iterator[Image]:
        """Every image in the order of the jobs, waiting for those still to come."""
        cursor, done = None, -1
        while True:
            page = self._page(cursor)
            for job in (Job(data, self._transport) for data in page["jobs"]):
                if job.ord <= done:
                    continue
                if not job.ended:
                    break
                done = job.ord
                if job.image:
                    yield job.image
            else:
                cursor = page["next_cursor"]
                if cursor is None:
                    return
                continue
            time.sleep(_PAUSE)

    def download(
        self, folder: str | Path, on_image: Callable[[Path, bool], object] | None = None
    ) -> list[Path]:
        """Save the images made so far by :meth:`file_name`; what is there whole is kept.

        Args:
            on_image: called for each with its path and whether it had to be fetched.
        """
        paths = []
        for job in self.jobs("succeeded"):
            image = job.image
            if image:
                path = Path(folder) / self.file_name(image)
                fetched = image.save(path)
                paths.append(path)
                if on_image:
                    on_image(path, fetched)
        return paths

    def file_name(self, image: Image) -> str:
        """``<ord>-<seed>.png``, or as its format is called; names sort in the order of the jobs."""
        ord = f"{image.ord:0{len(str(self.total - 1))}d}"
        return f"{ord}-{image.seed}{suffix_of(image.mime)}"

    def _page(self, cursor: str | None, state: str | None = None) -> dict[str, Any]:
        found = self._transport.get(self._link("jobs"), limit=_PAGE, cursor=cursor, state=state)
        return dict(found)

    def _link(self, name: str) -> str:
        return str(self.data["links"][name])

    def _take(self, data: dict[str, Any]) -> None:
        # Only a whole answer carries `spec`; it never changes, so what is known stays.
        self.data = {**self.data, **data}
