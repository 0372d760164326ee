"""Who sends what changes something is known before any of it is read."""

from __future__ import annotations

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from farm.api.deps import Services, identified, key_of
from farm.api.errors import of_error
from farm.api.guard import READING
from farm.errors import FarmError


class KeyCheck:
    """ASGI middleware: nothing of a body is read, let alone parsed, for who may send none.

    A route reads the body before it asks for the caller: without this, whoever reaches the port
    could have the API parse 32 MB as often as they like.

    Args:
        app: whose routes find the user in ``request.state.caller``.
    """

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING:
            request = Request(scope)
            key = await key_of(request)
            try:
                caller = await to_thread.run_sync(identified, self._services, key)
            except FarmError as error:
                await of_error(error)(scope, receive, send)
                return
            request.state.caller = caller
        await self._app(scope, receive, send)
