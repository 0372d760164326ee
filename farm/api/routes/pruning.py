"""/v1/prune: old batches go."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from farm.api.deps import Serving, administering
from farm.db import retention

router = APIRouter(prefix="/v1", tags=["farm"])

_SLICE = 1000


class Old(BaseModel):
    """Which batches are old."""

    model_config = ConfigDict(extra="forbid")

    older_than_days: float = Field(ge=1, le=36500, description="since they ended")
    dry_run: bool = False


class Pruned(BaseModel):
    """Batches that go with all that they made, or would go."""

    batches: int
    jobs: int
    images: int
    bytes: int
    dry_run: bool


@router.post(
    "/prune", summary="Remove old batches and their images", dependencies=[Depends(administering)]
)
def prune(old: Old, services: Serving) -> Pruned:
    """They are gone for everybody at once; the dispatcher removes rows and files in time.

    Batches with `keep`, and those that have not ended, stay. What they cost stays in the books.
    """
    found = retention.old(services.db, days=old.older_than_days)
    if not old.dry_run:
        while retention.prune(services.db, days=old.older_than_days, limit=_SLICE) == _SLICE:
            pass
    return Pruned(**vars(found), dry_run=old.dry_run)
