"""A worker, as a client tells it what to do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from farm.client.transport import Transport, segment
from farm.errors import Conflict, NotFound

_POLL = 0.25


class Worker:
    """The workers of a name: mostly one, but hosts may call theirs alike.

    Every method raises NotFound where there is none.
    """

    def __init__(self, name: str, transport: Transport) -> None:
        self.name = name
        self._transport = transport

    def drain(self) -> None:
        """Give it no more jobs; what it holds it finishes."""
        self._tell("drain")

    def tag(self, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Give it tags, or take some, until it starts anew."""
        self._tell("tag", {"add": list(add), "remove": list(remove)})

    def quarantine(self, because: str | None = None) -> None:
        """Give it no jobs until it is resumed, whatever becomes of it."""
        self._tell("quarantine", {"reason": because} if because else None)

    def resume(self) -> None:
        """Give it jobs again, drained or quarantined as it is."""
        self._tell("resume")

    def trace(self, *, patience: float = 30.0) -> dict[str, Any]:
        """What it did when, in the Trace Event Format; waits until it has told.

        Raises:
            NotFound: it did not tell within ``patience`` seconds.
        """
        return self._awaited(self._tell("trace")["url"], patience)

    def calibrate(
        self,
        *,
        checkpoint: str | None = None,
        sizes: Iterable[tuple[int, int]] = (),
        patience: float = 900.0,
    ) -> dict[str, Any]:
        """Have it measure what calls of a checkpoint take, as predicted and as they were.

        Args:
            checkpoint: by default the one it used last.
            sizes: width and height; by default what the UNet was made for, and half of that.

        Raises:
            NotFound: it did not answer within ``patience`` seconds.
            Conflict: it could not; says why.
        """
        asked = {"checkpoint": checkpoint, "sizes": list(sizes)}
        report, _ = self._report("calibrate", asked, patience)
        return report

    def memory(
        self, *, seconds: float = 0.0, patience: float = 60.0
    ) -> tuple[bytes, Mapping[str, int]]:
        """What lies where in its card, for https://pytorch.org/memory_viz: a pickle of
        torch's, which is for that page and better not loaded. And how many bytes of the card
        recorded forwards hold, by checkpoint.

        Args:
            seconds: to record for before it who allocates what.

        Raises:
            NotFound: it did not answer within ``patience`` seconds.
            Conflict: it holds no GPU.
        """
        report, url = self._report("memory", {"seconds": seconds}, patience + seconds)
        return self._transport.content(f"{url}/file"), report.get("recorded", {})

    def _report(
        self, what: str, asked: Mapping[str, Any], patience: float
    ) -> tuple[dict[str, Any], str]:
        url = self._tell(what, asked)["url"]
        report = self._awaited(url, patience)
        if error := report.get("error"):
            told = {key: error.get(key) for key in ("field", "value", "remedy")}
            raise Conflict(error["detail"], **told)
        return report, url

    def _awaited(self, url: str, patience: float) -> dict[str, Any]:
        """What it will have written there."""
        until = time.monotonic() + patience
        while True:
            try:
                return dict(self._transport.get(url))
            except NotFound:
                if time.monotonic() > until:
                    raise
            time.sleep(_POLL)

    def _tell(self, what: str, asked: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        answer = self._transport.post(f"/v1/workers/{segment(self.name)}:{what}", asked)
        return dict(answer or {})
