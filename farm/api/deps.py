"""What the routes are given: the farm's services, the caller."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from farm.api.seats import Seats
from farm.db import users
from farm.db.database import Database
from farm.db.users import User
from farm.dispatch.means import Glance
from farm.dispatch.outlook import Outlook
from farm.errors import Forbidden, Unauthorized
from farm.spec.output import PNG, Output
from farm.storage import ImageStore

UPLOADS = 4
"""Threads that take in jobs line by line: a million of them keep one busy for a minute."""


@dataclass(frozen=True)
class Services:
    """What an API process works with.

    Attributes:
        local: a farm for the one person at this machine: no keys, see
            :class:`farm.api.guard.Guard`.
        output: of batches that name none.
        quota: most jobs of a user that may wait, where nothing else was said of them; None for any
            number.
        streams: event streams that may be open.
        streams_each: of these, by one user or from one address.
    """

    db: Database
    images: ImageStore
    broker_url: str
    local: bool
    output: Output = PNG
    quota: int | None = None
    streams: int = 256
    streams_each: int = 32

    @cached_property
    def outlook(self) -> Outlook:
        """When batches will end."""
        return Outlook(self.db)

    @cached_property
    def glance(self) -> Glance:
        """What live workers could make."""
        return Glance(self.db)

    @cached_property
    def seats(self) -> Seats:
        """For event streams."""
        return Seats(self.streams, self.streams_each)

    @cached_property
    def uploads(self) -> CapacityLimiter:
        """Lets uploads have no more threads than :data:`UPLOADS`; the others serve all else."""
        return CapacityLimiter(UPLOADS)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Serving = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(auto_error=False, description="A key made by `farm key`.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def key_of(request: Request) -> str | None:
    """The key that a request was sent with."""
    bearer = await _bearer(request)
    return bearer.credentials if bearer else await _header(request)


def identified(services: Services, key: str | None) -> User:
    """The user who holds ``key``; Unauthorized where it is missing or unknown."""
    if not key:
        if services.local:
            return users.local(services.db)
        raise Unauthorized(
            "This needs a key.",
            field="Authorization",
            remedy="Send `Authorization: Bearer KEY`; for the command line set FARM_API_KEY.",
        )
    user = users.for_key(services.db, key)
    if user is None:
        raise Unauthorized(
            "Nobody issued this key.", field="Authorization", remedy="Ask for a new one."
        )
    return user


def calling(
    request: Request,
    services: Serving,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> User:
    """The user who sends the request, whom :mod:`farm.api.keycheck` knows already where it changes
    something; Unauthorized where a key is missing or unknown."""
    known: User | None = getattr(request.state, "caller", None)
    return known or identified(services, bearer.credentials if bearer else header)


Caller = Annotated[User, Depends(calling)]


def administering(caller: Caller) -> User:
    """The caller; Forbidden unless they run the farm."""
    if not caller.admin:
        raise Forbidden(
            "Only an administrator of the farm may do this.",
            field="Authorization",
            remedy="Ask one; `farm key NAME --admin` makes one.",
        )
    return caller
