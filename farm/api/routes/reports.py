"""What workers are asked to tell, measure or show, and what they answer."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from farm.api import names
from farm.api.deps import Serving, administering
from farm.api.schemas.reports import Calibrate, Report, Snapshot
from farm.db import orders
from farm.db.database import Database
from farm.db.orders import Action
from farm.errors import NotFound
from farm.storage import report_path, snapshot_path, trace_path

router = APIRouter(prefix="/v1", tags=["workers"])

_ID = re.compile("[0-9a-f]{32}")


@router.post(
    "/workers/{name}:trace",
    status_code=202,
    summary="Have a worker say what it did when",
    dependencies=[Depends(administering)],
)
def trace(name: str, services: Serving) -> Report:
    """Told with its next heartbeat, it writes its timeline of late; then it is at `url`."""
    id = uuid.uuid4().hex
    _order(services.db, name, "trace", id)
    return Report(id=id, url=f"/v1/traces/{id}")


@router.get("/traces/{id}", summary="A worker's timeline, for ui.perfetto.dev")
def show_trace(id: str, services: Serving) -> dict[str, Any]:
    """In the Trace Event Format. Not found until the worker has written it."""
    found: dict[str, Any] = json.loads(services.images.get(trace_path(_checked(id))))
    return found


@router.post(
    "/workers/{name}:calibrate",
    status_code=202,
    summary="Have a worker measure what calls of a checkpoint take",
    dependencies=[Depends(administering)],
)
def calibrate(name: str, services: Serving, asked: Calibrate | None = None) -> Report:
    """Between the steps of its jobs. Predictions are corrected by it; then it is at `url`."""
    return _ordered(services.db, name, "calibrate", asked or Calibrate())


@router.post(
    "/workers/{name}:memory",
    status_code=202,
    summary="Have a worker show what lies where in its card's memory",
    dependencies=[Depends(administering)],
)
def memory(name: str, services: Serving, asked: Snapshot | None = None) -> Report:
    """When `url` is there, `url`/file is a snapshot in torch's own format, a pickle, for
    https://pytorch.org/memory_viz."""
    return _ordered(services.db, name, "memory", asked or Snapshot())


@router.get("/reports/{id}", summary="A worker's answer", dependencies=[Depends(administering)])
def show_report(id: str, services: Serving) -> dict[str, Any]:
    """Not found until the worker has written it. Has `error` where it could not."""
    found: dict[str, Any] = json.loads(services.images.get(report_path(_checked(id))))
    return found


@router.get(
    "/reports/{id}/file",
    summary="A snapshot of a card's memory",
    dependencies=[Depends(administering)],
    response_class=Response,
)
def show_file(id: str, services: Serving) -> Response:
    content = services.images.get(snapshot_path(_checked(id)))
    return Response(content, media_type="application/octet-stream")


def _ordered(db: Database, name: str, action: Action, asked: BaseModel) -> Report:
    id = uuid.uuid4().hex
    _order(db, name, action, f"{id} {asked.model_dump_json()}")
    return Report(id=id, url=f"/v1/reports/{id}")


def _order(db: Database, name: str, action: Action, subject: str) -> None:
    if not orders.give(db, action, subject, worker=name):
        raise names.no_worker(name)


def _checked(id: str) -> str:
    if not _ID.fullmatch(id):
        raise NotFound(f"Nothing of a worker is called {id[:40]}.", field="id", value=id)
    return id
