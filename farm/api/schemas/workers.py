"""What the API is told and answers of workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from farm.db import health, sessions
from farm.spec.tags import MAX_TAGS, Tag


class Quarantine(BaseModel):
    """Why a worker gets no jobs; `test_at`: when it gets its next canaries, if ever."""

    reason: str
    since: datetime
    by_hand: bool
    times: int = Field(description="in a row, less than a day apart")
    tests: int = Field(description="canaries that it failed")
    test_at: datetime | None
    last_test: str | None


class Worker(BaseModel):
    """A worker's present session."""

    name: str
    session: str
    host: str
    state: str = Field(description="live, draining or quarantined")
    device: dict[str, Any]
    profile: str
    capacity: int = Field(description="jobs it holds at once")
    tags: list[str] = Field(description="that batches may ask for")
    running: int
    assigned: int
    resident: list[str] = Field(description="checkpoints in its memory")
    stats: dict[str, Any]
    started_at: datetime
    lease_until: datetime
    quarantine: Quarantine | None

    @classmethod
    def of(cls, session: sessions.Session, away: health.Quarantine | None) -> Self:
        values = {name: part for name, part in vars(session).items() if name in cls.model_fields}
        told = Quarantine(**vars(away)) if away else None
        return cls(name=session.worker, session=session.id, quarantine=told, **values)


class Workers(BaseModel):
    workers: list[Worker]


class Tags(BaseModel):
    """Tags for a worker to have, and not to have any more."""

    model_config = ConfigDict(extra="forbid")

    add: list[Tag] = Field(default=[], max_length=MAX_TAGS)
    remove: list[Tag] = Field(default=[], max_length=MAX_TAGS)
