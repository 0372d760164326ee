"""/v1/workers: who renders."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.deps import Serving
from farm.api.schemas import Worker, Workers
from farm.db import sessions

router = APIRouter(prefix="/v1", tags=["farm"])


@router.get("/workers", summary="Workers that are alive")
def list_workers(services: Serving) -> Workers:
    return Workers(workers=[Worker.of(session) for session in sessions.live(services.db)])
