"""HTTP to one farm: retries, errors as the API raised them, event streams."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from farm.errors import (
    Conflict,
    FarmError,
    InvalidInput,
    NotFound,
    Unauthorized,
    Unavailable,
)

_PAUSES = (0.2, 0.6, 1.5)
"""Seconds before each repetition of a request that got no answer."""

# The server sends a heartbeat every ten seconds, so silence means a lost connection.
_TIMEOUT = httpx.Timeout(30, connect=5)
# Between two lines, and for the answer to the last, the farm may store a while.
_PATIENT = httpx.Timeout(300, connect=5)
_UNAVAILABLE = frozenset({502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_KINDS = FarmError.__subclasses__()
_FINER = [finer for kind in _KINDS for finer in kind.__subclasses__()]
_BY_TITLE = {kind.title: kind for kind in [*_KINDS, *_FINER]}
_BY_STATUS = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 409: Conflict}


class Transport:
    """Requests to the farm at ``url``, with an API key where it asks for one.

    Every request may be repeated: reading changes nothing, and what changes something is either
    idempotent or carries an idempotency key. A worker may be asked for a report twice.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidInput(
                f"{url!r} is not the address of a farm.",
                field="url",
                value=url,
                remedy="Give one such as http://127.0.0.1:7900.",
            )
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            # A proxy cannot reach this machine's own loopback.
            trust_env=parsed.host not in _LOOPBACK,
            # Reading the certificates takes longer than most answers.
            verify=parsed.scheme == "https",
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON document at ``path``."""
        asked = {name: value for name, value in query.items() if value is not None}
        return self._answer(lambda: self._http.get(path, params=asked)).json()

    def content(self, path: str) -> bytes:
        return self._answer(lambda: self._http.get(path)).content

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Any:
        """The JSON answer to a POST; ``key`` is its idempotency key."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._answer(lambda: self._http.post(path, json=body, headers=headers)).json()

    def stream(self, path: str, lines: Callable[[], Iterator[bytes]], *, key: str) -> Any:
        """The JSON answer to a POST of one JSON object a line.

        Args:
            lines: gives them anew each time the request has to be sent.
            key: its idempotency key.
        """
        headers = {"Idempotency-Key": key, "Content-Type": "application/x-ndjson"}
        return self._answer(
            lambda: self._http.post(path, content=lines(), headers=headers, timeout=_PATIENT)
        ).json()

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a PATCH."""
        return self._answer(lambda: self._http.patch(path, json=body)).json()

    def events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and data of each server-sent event until the server ends the stream."""
        try:
            with self._http.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                yield from _parsed(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _answer(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        for pause in (*_PAUSES, None):
            try:
                response = send()
            except httpx.TransportError as error:
                failure: FarmError = self._unreachable(error)
            else:
                if response.is_success:
                    return response
                failure = _error(response)
                if response.status_code not in _UNAVAILABLE:
                    raise failure
            if pause is not None:
                time.sleep(pause)
        raise failure

    def _unreachable(self, error: httpx.TransportError) -> Unavailable:
        return Unavailable(
            f"No farm answers at {self.url}: {error or type(error).__name__}.",
            field="url",
            value=self.url,
            remedy="Start one with `farm up`, or set FARM_URL to one that runs.",
        )


def _error(response: httpx.Response) -> FarmError:
    """What the API raised, from its problem+json answer."""
    status = response.status_code
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict) or "detail" not in told:
        told = {"detail": f"{response.request.url} answered {status} and nothing readable."}
    kind = _BY_TITLE.get(str(told.get("title"))) or _BY_STATUS.get(status)
    if kind is None:
        usual = InvalidInput if status < 500 else FarmError
        kind = Unavailable if status in _UNAVAILABLE else usual
    return kind(
        str(told["detail"]),
        field=told.get("field"),
        value=told.get("value"),
        remedy=told.get("remedy"),
    )


def _parsed(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name, data = "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data += value
        elif not line:
            if data:
                yield name, json.loads(data)
            name, data = "message", ""


def segment(id: str | int) -> str:
    """A part of an address, whatever is in it."""
    # Dots too: an address must not climb.
    return quote(str(id), safe="").replace(".", "%2E") or "none"


def segments(name: str) -> str:
    """A name whose slashes part it in an address as well."""
    return "/".join(map(segment, name.split("/")))
