"""What stands before every route: whose requests are heard, how large they are, what they break."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.api.errors import of_fault, problem

MAX_BODY = 32 * 1024 * 1024
MAX_STREAM = 64 * 1024**3
"""Of what is taken in line by line and never held."""

NDJSON = "application/x-ndjson"
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""What changes nothing."""


class Guard:
    """ASGI middleware in front of the whole API.

    Args:
        app: what it guards.
        local: a farm for the one person at this machine, which asks for no key. Then only
            requests addressed to this machine by name are heard, and no page of another site
            may send any: a web page could otherwise use the farm through its visitor's browser.
    """

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers) or _nameless(scope) or _oversize(headers)
        if refusal:
            await refusal(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, _limited(receive, _limit(headers)), sending)
        except Exception as fault:  # the last line: no traceback ever reaches a client
            answer = of_fault(fault, scope["method"], scope["path"])
            if started:
                raise
            await answer(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not self._local:
            return None
        host = headers.get("host", "")
        if _name(host) not in _LOCAL_NAMES:
            return problem(
                403,
                "Forbidden",
                f"This farm is for this machine only, not for {host or 'no host'!r}.",
                field="Host",
                value=host,
                remedy="Use http://localhost, or start it with `farm up --host` for others.",
            )
        origin = headers.get("origin")
        if origin and scope["method"] not in READING and _place(origin) != host:
            return problem(
                403,
                "Forbidden",
                f"A page of {origin} may not use this farm.",
                field="Origin",
                value=origin,
                remedy="Send the request from the farm's own page or from a program.",
            )
        return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _nameless(scope: Scope) -> Response | None:
    if "\0" not in scope["path"]:
        return None
    # Postgres would not even look for it.
    detail = "Nothing has a name with a NUL character."
    return problem(404, "Not found", detail, field="path", value=scope["path"])


def is_stream(headers: Headers) -> bool:
    """Whether the body is one JSON object a line."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON


def _limit(headers: Headers) -> int:
    return MAX_STREAM if is_stream(headers) else MAX_BODY


def _oversize(headers: Headers) -> Response | None:
    told, limit = headers.get("content-length", "0"), _limit(headers)
    # Compared by length first: a number of a million digits is never converted.
    if told.isdecimal() and (len(told) > 12 or int(told) > limit):
        return problem(
            413,
            "Content Too Large",
            f"The body is larger than {limit} bytes.",
            remedy=f"Split the batch, use axes instead of listing jobs, or send them as {NDJSON}.",
        )
    return None


def _limited(receive: Receive, limit: int) -> Receive:
    total = 0

    async def receiving() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes")
        return message

    return receiving
