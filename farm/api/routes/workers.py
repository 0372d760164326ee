"""/v1/workers: who renders, and what they are told."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from farm.api import names
from farm.api.deps import Serving, administering
from farm.api.names import Text
from farm.api.schemas.workers import Tags, Worker, Workers
from farm.db import health, sessions
from farm.db.database import Database

router = APIRouter(prefix="/v1", tags=["workers"])


class Because(BaseModel):
    """Why a worker is put into quarantine."""

    model_config = ConfigDict(extra="forbid")

    reason: Text = Field(min_length=1, max_length=500)


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
    return _found(services.db, name, sessions.drain_worker(services.db, name))


@router.post(
    "/workers/{name}:tag",
    summary="Give a worker tags, or take some",
    dependencies=[Depends(administering)],
)
def tag(name: str, services: Serving, tags: Tags) -> Workers:
    """Until it starts anew: then it has those of `FARM_TAGS` again."""
    changed = sessions.tag(services.db, name, add=tags.add, remove=tags.remove)
    return _found(services.db, name, changed)


@router.post(
    "/workers/{name}:quarantine",
    summary="Give a worker no jobs until it is resumed",
    dependencies=[Depends(administering)],
)
def quarantine(name: str, services: Serving, because: Because | None = None) -> Workers:
    """Its restarts too: unlike draining, it lasts until `:resume`."""
    reason = because.reason if because else "Somebody put it there."
    return _found(services.db, name, health.quarantine(services.db, name, reason, by_hand=True))


@router.post(
    "/workers/{name}:resume",
    summary="Give a drained or quarantined worker jobs again",
    dependencies=[Depends(administering)],
)
def resume(name: str, services: Serving) -> Workers:
    return _found(services.db, name, health.resume(services.db, name))


def _found(db: Database, name: str, there: int) -> Workers:
    if not there:
        raise names.no_worker(name)
    return _workers(db)


def _workers(db: Database) -> Workers:
    away = {(each.host, each.worker): each for each in health.active(db)}
    return Workers(
        workers=[
            Worker.of(session, away.get((session.host, session.worker)))
            for session in sessions.live(db)
        ]
    )
