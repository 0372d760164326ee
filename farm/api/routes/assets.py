"""/v1/assets: the model files of the farm, and what workers are to hold of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from farm.api import names
from farm.api.deps import Serving, administering
from farm.api.names import Text
from farm.api.schemas.assets import Asset, Assets, Told, WholeAsset
from farm.db import assets, orders, sessions
from farm.db.assets import CHECKPOINT, Known
from farm.db.database import Database
from farm.errors import InvalidInput, NotFound

router = APIRouter(prefix="/v1/assets", tags=["assets"])

Kind = Annotated[
    Text | None,
    Query(max_length=40, description="checkpoint, lora, embedding, vae, upscaler, ..."),
]


class Order(BaseModel):
    """Whom an order is for."""

    model_config = ConfigDict(extra="forbid")

    worker: Text | None = Field(
        default=None, max_length=100, description="A worker's name; all of them if left out."
    )


@router.get("", summary="Assets that workers have seen")
def listing(services: Serving, kind: Kind = None) -> Assets:
    live = sessions.live(services.db)
    found = assets.listing(services.db, kind)
    return Assets(assets=[Asset.seen(asset, live) for asset in found])


@router.get("/{kind}/{name:path}", summary="One asset, with its metadata and where it lies")
def show(kind: str, name: str, services: Serving) -> WholeAsset:
    asset = _existing(services.db, kind, name)
    files = assets.files(services.db, kind, name)
    return WholeAsset.whole(asset, sessions.live(services.db), files)


@router.post(
    "/checkpoint/{name:path}:warm",
    status_code=202,
    summary="Load a checkpoint ahead of its jobs",
    dependencies=[Depends(administering)],
)
def warm(name: str, services: Serving, order: Order | None = None) -> Told:
    """Told with their next heartbeat, workers load it while they go on with their jobs."""
    return _tell(services.db, name, "warm", order)


@router.post(
    "/checkpoint/{name:path}:evict",
    status_code=202,
    summary="Have workers let go of a checkpoint",
    dependencies=[Depends(administering)],
)
def evict(name: str, services: Serving, order: Order | None = None) -> Told:
    """From GPU and host memory; a worker that computes with it refuses, and says so."""
    return _tell(services.db, name, "evict", order)


def _tell(db: Database, name: str, action: Literal["warm", "evict"], order: Order | None) -> Told:
    asset = _existing(db, CHECKPOINT, name)
    if asset.error and action == "warm":
        raise InvalidInput(f"{name} cannot be used: {asset.error}", field="checkpoint", value=name)
    worker = order.worker if order else None
    told = orders.give(db, action, name, worker=worker)
    if not told:
        raise names.no_worker(worker)
    return Told(checkpoint=name, action=action, workers=told)


def _existing(db: Database, kind: str, name: str) -> Known:
    asset = assets.get(db, kind, name)
    if asset is None:
        raise NotFound(
            f"There is no {kind[:40]} {name[:200]}.",
            field="name",
            value=name,
            remedy="`farm model ls` shows what workers have.",
        )
    return asset
