"""/v1/users: whose part of the farm is how large."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.api.deps import Serving, administering
from farm.db import users
from farm.dispatch.fairness import jain

# Names of people and what they may do are nobody else's business.
router = APIRouter(prefix="/v1/users", tags=["users"], dependencies=[Depends(administering)])


class Shareholder(BaseModel):
    """A user's part of the farm."""

    name: str
    admin: bool
    weight: float = Field(description="their part, relative to others'")
    cap: int | None = Field(description="most of their jobs that workers hold at once")
    quota: int | None = Field(
        description="most of their jobs that may wait; null for what the farm allows everybody"
    )
    waiting: int = Field(description="their jobs that wait now")
    longest_wait: float | None = Field(
        description="seconds since the oldest batch came of which jobs wait; null for none"
    )
    median_wait: float | None = Field(
        description="seconds from submission to start, of what ended in the last ten minutes"
    )
    gpu_seconds: float = Field(description="that they had in the last ten minutes")
    throughout: bool = Field(
        description="normal jobs have waited for all of that time, and no cap kept them"
    )

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        return cls(cap=row["max_in_flight"], quota=row["max_waiting"], **row)


class Fairness(BaseModel):
    """How equal the parts are of those who could have had more: Jain's index of their GPU-seconds
    over their weights, 1 if all are equal and one over their number if one has everything."""

    seconds: float = Field(description="that are looked back")
    users: int = Field(description="who had normal jobs waiting throughout")
    jain: float | None = Field(description="null where there are not two of them")


class Users(BaseModel):
    users: list[Shareholder]
    fairness: Fairness


class Share(BaseModel):
    """What of a user can be changed; what is left out stays, and null takes a limit away."""

    model_config = ConfigDict(extra="forbid")

    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    cap: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    quota: Annotated[int, Field(ge=0, le=2**53)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("weight: neither it nor cap nor quota is given")
        return self


@router.get("", summary="Users and their shares, by name")
def list_users(services: Serving) -> Users:
    """With what each waits for and had of late, and how equal that is."""
    rows = users.shares(services.db)
    had = [row["gpu_seconds"] / row["weight"] for row in rows if row["throughout"]]
    index = jain(had) if len(had) > 1 else None
    fairness = Fairness(seconds=users.WINDOW, users=len(had), jain=index)
    return Users(users=[Shareholder.of(row) for row in rows], fairness=fairness)


@router.patch("/{name:path}", summary="Change a user's weight, cap or quota")
def change(name: str, share: Share, services: Serving) -> Shareholder:
    """The dispatcher heeds it at once; a quota counts for what is submitted from now on."""
    given = share.model_fields_set
    users.set_share(
        services.db,
        name,
        weight=share.weight if "weight" in given else None,
        cap=share.cap,
        uncap="cap" in given and share.cap is None,
        quota=share.quota,
        unquota="quota" in given and share.quota is None,
    )
    return Shareholder.of(next(row for row in users.shares(services.db) if row["name"] == name))
