"""/healthz and /readyz: is the process alive, can it serve."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from farm import __version__
from farm.api.deps import Serving
from farm.api.errors import problem
from farm.broker.progress import answers
from farm.db.database import Database
from farm.db.schema import is_current
from farm.dispatch.health import all_away
from farm.dispatch.store import verify
from farm.errors import FarmError, Unavailable

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str
    version: str


@router.get("/", include_in_schema=False)
def index() -> dict[str, str]:
    return {"name": "farm", "version": __version__, "batches": "/v1/batches", "docs": "/docs"}


@router.get("/healthz", summary="The process lives")
def health() -> Health:
    return Health(status="ok", version=__version__)


@router.get("/readyz", summary="Everything it needs is there", responses={503: {}})
def ready(services: Serving) -> Response:
    """Each part on its own: `database`, `schema`, `broker`; 503 unless all say `ok`.

    `warnings` tell why nothing is made or found although all is there: every worker is in
    quarantine, or the image store is not mounted.
    """
    database = _state(services.db.check)
    parts = {
        "database": database,
        "schema": _state(lambda: _check_schema(services.db)) if database == "ok" else "unknown",
        "broker": _state(lambda: _check_broker(services.broker_url)),
    }
    wrong = [f"{name}: {state}" for name, state in parts.items() if state != "ok"]
    if wrong:
        return problem(503, "Unavailable", "; ".join(wrong), parts=parts)
    told = {"status": "ready", "version": __version__, "parts": parts}
    store = _state(lambda: verify(services.db, services.images))
    warnings = [all_away(services.db), store if store != "ok" else None]
    return JSONResponse({**told, "warnings": [warning for warning in warnings if warning]})


def _check_schema(db: Database) -> None:
    if not is_current(db):
        raise Unavailable("Its schema is another version's.", remedy="Run `farm migrate`.")


def _check_broker(url: str) -> None:
    if not answers(url):
        raise Unavailable(
            "It does not answer.", remedy="Check that it runs and that FARM_BROKER_URL is right."
        )


def _state(check: Callable[[], None]) -> str:
    try:
        check()
    except FarmError as error:
        return str(error)
    return "ok"
