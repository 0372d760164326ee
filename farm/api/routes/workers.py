"""/v1/workers: who renders, and what they are told."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from fastapi import APIRouter, Depends

from farm.api.deps import Serving, administering
from farm.api.schemas import Trace, Worker, Workers
from farm.db import orders, sessions
from farm.db.database import Database
from farm.errors import NotFound
from farm.storage import trace_path

router = APIRouter(prefix="/v1", tags=["workers"])

_ID = re.compile("[0-9a-f]{32}")


@router.get("/workers", summary="Workers that are alive")
def list_workers(services: Serving) -> Workers:
    return _workers(services.db)


@router.post(
    "/workers/{name}:drain",
    summary="Give a worker no more jobs",
    dependencies=[Depends(administering)],
)
def drain(name: str, services: Serving) -> Workers:
    """What it holds it finishes. A worker that starts anew takes jobs again."""
    return _drained(services.db, name, draining=True)


@router.post(
    "/workers/{name}:resume",
    summary="Give a drained worker jobs again",
    dependencies=[Depends(administering)],
)
def resume(name: str, services: Serving) -> Workers:
    return _drained(services.db, name, draining=False)


@router.post(
    "/workers/{name}:trace",
    status_code=202,
    summary="Have a worker say what it did when",
    dependencies=[Depends(administering)],
)
def trace(name: str, services: Serving) -> Trace:
    """Told with its next heartbeat, it writes its timeline of late; then it is at `url`."""
    id = uuid.uuid4().hex
    if not orders.give(services.db, "trace", id, worker=name):
        raise _no_worker(name)
    return Trace(id=id, url=f"/v1/traces/{id}")


@router.get("/traces/{id}", summary="A worker's timeline, for ui.perfetto.dev")
def show_trace(id: str, services: Serving) -> dict[str, Any]:
    """In the Trace Event Format. Not found until the worker has written it."""
    if not _ID.fullmatch(id):
        raise NotFound(f"There is no trace {id[:40]}.", field="id", value=id)
    found: dict[str, Any] = json.loads(services.images.get(trace_path(id)))
    return found


def _drained(db: Database, name: str, *, draining: bool) -> Workers:
    if not sessions.set_draining(db, name, draining=draining):
        raise _no_worker(name)
    return _workers(db)


def _workers(db: Database) -> Workers:
    return Workers(workers=[Worker.of(session) for session in sessions.live(db)])


def _no_worker(name: str) -> NotFound:
    return NotFound(
        f"There is no live worker {name[:100]}.",
        field="worker",
        value=name,
        remedy="`farm workers` shows those that are.",
    )
