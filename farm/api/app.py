"""The HTTP API, put together."""

from __future__ import annotations

from fastapi import FastAPI

from farm import __version__
from farm.api import errors
from farm.api.deps import Services
from farm.api.guard import Guard
from farm.api.keycheck import KeyCheck
from farm.api.routes import (
    assets,
    batches,
    events,
    health,
    jobs,
    prompts,
    pruning,
    reports,
    streams,
    usage,
    users,
    workers,
)

_ABOUT = """Submit batches of images, follow them, fetch what they made.

Every error is `application/problem+json` (RFC 9457) and names the field, its value and a remedy.
"""


def create_app(services: Services) -> FastAPI:
    """The application; whoever made ``services`` closes them."""
    app = FastAPI(title="Farm", version=__version__, description=_ABOUT, redirect_slashes=False)
    app.state.services = services
    errors.install(app)
    for routes in (
        health,
        events,
        streams,
        batches,
        jobs,
        workers,
        reports,
        assets,
        prompts,
        pruning,
        usage,
        users,
    ):
        app.include_router(routes.router)
    app.add_middleware(KeyCheck, services=services)
    app.add_middleware(Guard, local=services.local)
    return app
