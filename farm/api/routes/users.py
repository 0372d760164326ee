"""/v1/users: whose part of the farm is how large."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.api.deps import Serving, administering
from farm.db import users
from farm.errors import NotFound

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

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        return cls(cap=row["max_in_flight"], quota=row["max_waiting"], **row)


class Users(BaseModel):
    users: list[Shareholder]


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
    return Users(users=[Shareholder.of(row) for row in users.shares(services.db)])


@router.patch("/{name:path}", summary="Change a user's weight, cap or quota")
def change(name: str, share: Share, services: Serving) -> Shareholder:
    """The dispatcher heeds it at once; a quota counts for what is submitted from now on."""
    given = share.model_fields_set
    if "\0" in name:
        raise NotFound("There is no such user.", field="user", value=name)
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
