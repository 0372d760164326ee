"""/v1/workers and /v1/assets: who renders, and with which checkpoints."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.deps import Serving
from farm.api.schemas import Assets, Checkpoint, Worker, Workers
from farm.db import assets, sessions

router = APIRouter(prefix="/v1", tags=["farm"])


@router.get("/workers", summary="Workers that are alive")
def list_workers(services: Serving) -> Workers:
    return Workers(workers=[Worker.of(session) for session in sessions.live(services.db)])


@router.get("/assets", summary="Checkpoints that workers have seen")
def list_assets(services: Serving) -> Assets:
    return Assets(checkpoints=[Checkpoint.of(asset) for asset in assets.listing(services.db)])
