"""Farm: where a client begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from farm.client.batch import Batch
from farm.client.job import Job
from farm.client.transport import Transport, segment, segments
from farm.client.worker import Worker
from farm.settings import Settings

_CHUNK = 1 << 18


class Farm:
    """A farm, by its API.

    Args:
        url: its address; by default FARM_URL, else the farm that `farm up` runs in ``home``,
            else http://127.0.0.1:7900.
        key: its API key; by default FARM_API_KEY, or what `farm up` keeps in ``home``.
        home: the one-machine farm's folder; by default FARM_HOME.

    Every method raises Unavailable when no farm answers, after a few tries.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, home: str | Path | None = None
    ) -> None:
        settings = Settings() if home is None else Settings(home=Path(home))
        announced = _announced(settings.home)
        if not url:
            told = "url" in settings.model_fields_set
            url = settings.url if told or not announced else announced
        key = key or settings.api_key
        if not key and url == announced:
            key = _kept_key(settings.home)
        self._transport = Transport(url, key)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self._transport.url

    def close(self) -> None:
        self._transport.close()

    def submit(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Batch:
        """Submit a batch, given as :class:`farm.spec.batch.BatchRequest` fields.

        A request that got no answer is sent again under the same idempotency key, so that it
        never makes two batches.

        Raises:
            InvalidInput: a field is wrong; nothing was submitted.
            Conflict: the key was used for another request.
        """
        key = idempotency_key or uuid4().hex
        answer = self._transport.post("/v1/batches", {**(request or {}), **fields}, key=key)
        return Batch(answer, self._transport)

    def submit_lines(
        self, lines: Callable[[], Iterable[bytes]], *, idempotency_key: str | None = None
    ) -> Batch:
        """Submit any number of explicit jobs, one JSON object a line, without holding them.

        The first line may be ``{"batch": {...}}`` with the fields that the jobs share.

        Args:
            lines: gives them, each with its line end, as often as they have to be sent.

        Raises:
            InvalidInput: names the line and the field; nothing was submitted.
            Conflict: the key was used for another request.
        """
        key = idempotency_key or uuid4().hex
        answer = self._transport.stream("/v1/batches", lambda: _chunked(lines()), key=key)
        return Batch(answer, self._transport)

    def quote(self, request: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """What a batch would take, given as for :meth:`submit`; nothing is submitted."""
        return dict(self._transport.post("/v1/batches:quote", {**(request or {}), **fields}))

    def batch(self, id: str | int) -> Batch:
        """The batch of that id, or NotFound."""
        return Batch(self._transport.get(f"/v1/batches/{segment(id)}"), self._transport)

    def batches(self) -> Iterator[Batch]:
        """Every batch, newest first."""
        cursor = None
        while True:
            page = self._transport.get("/v1/batches", cursor=cursor)
            for data in page["batches"]:
                yield Batch(data, self._transport)
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def job(self, id: str) -> Job:
        """The job of that id, such as ``12-3``, or NotFound."""
        return Job(self._transport.get(f"/v1/jobs/{segment(id)}"), self._transport)

    def why(self, id: str) -> dict[str, Any]:
        """Why the job of that id is where it is: ``reason``, and a ``remedy`` or None."""
        return dict(self._transport.get(f"/v1/jobs/{segment(id)}/why"))

    def retry(self, id: str) -> Job:
        """Try the failed job of that id again; Conflict if it has not failed."""
        return Job(self._transport.post(f"/v1/jobs/{segment(id)}:retry"), self._transport)

    def failures(self) -> Iterator[dict[str, Any]]:
        """Batches with failed jobs and why those failed, the newest first."""
        cursor = None
        while True:
            page = self._transport.get("/v1/failures", cursor=cursor)
            yield from page["batches"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def prune(self, older_than_days: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Remove batches that ended so long ago, with their images; what goes, or would."""
        body = {"older_than_days": older_than_days, "dry_run": dry_run}
        return dict(self._transport.post("/v1/prune", body))

    def shares(self) -> dict[str, Any]:
        """``users`` with their weights, caps, quotas, waiting and GPU-seconds, and the ``fairness``
        between them; for administrators."""
        return dict(self._transport.get("/v1/users"))

    def set_share(self, user: str, **share: float | None) -> dict[str, Any]:
        """Change a user's ``weight``, ``cap`` or ``quota``; None takes a limit away."""
        return dict(self._transport.patch(f"/v1/users/{segments(user)}", share))

    def workers(self) -> list[dict[str, Any]]:
        return list(self._transport.get("/v1/workers")["workers"])

    def worker(self, name: str) -> Worker:
        """The worker of that name; whether there is one is found out when it is told something."""
        return Worker(name, self._transport)

    def usage(self, *, by: str = "user", since: str = "30d") -> dict[str, Any]:
        """What cards spent their seconds on, by user, batch, checkpoint, day or worker.

        Args:
            since: a date and time, or how long ago: ``24h``, ``7d``.
        """
        return dict(self._transport.get("/v1/usage", by=by, since=since))

    def forecasts(self) -> list[dict[str, Any]]:
        """How good forecasts of batches were: those made at the start, and with half of it left."""
        return list(self._transport.get("/v1/usage/forecasts")["forecasts"])

    def assets(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The assets that workers have seen, or those of one kind such as ``checkpoint``."""
        return list(self._transport.get("/v1/assets", kind=kind)["assets"])

    def asset(self, kind: str, name: str) -> dict[str, Any]:
        """One asset with its metadata, or NotFound."""
        return dict(self._transport.get(f"/v1/assets/{segment(kind)}/{segments(name)}"))

    def warm(self, checkpoint: str, *, worker: str | None = None) -> list[str]:
        """Have workers load a checkpoint ahead of its jobs; the names of those told."""
        return self._order(checkpoint, "warm", worker)

    def evict(self, checkpoint: str, *, worker: str | None = None) -> list[str]:
        """Have workers let go of a checkpoint; the names of those told."""
        return self._order(checkpoint, "evict", worker)

    def _order(self, checkpoint: str, action: str, worker: str | None) -> list[str]:
        address = f"/v1/assets/checkpoint/{segments(checkpoint)}:{action}"
        return list(self._transport.post(address, {"worker": worker})["workers"])


def _chunked(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same in pieces worth sending."""
    held, size = [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _announced(home: Path) -> str | None:
    """Where `farm up` says that it serves."""
    try:
        return str(json.loads((home / "farm.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept_key(home: Path) -> str | None:
    """The key that `farm up` keeps for its owner; it is sent to no other farm."""
    try:
        return (home / "api_key").read_text().strip() or None
    except OSError:
        return None
