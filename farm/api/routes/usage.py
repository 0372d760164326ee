"""/v1/usage: what cards spent their seconds on, and how good forecasts were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from farm.api.deps import Serving
from farm.db import forecasts, usage
from farm.db.forecasts import Past
from farm.errors import InvalidInput
from farm.spec.uses import Use

router = APIRouter(prefix="/v1", tags=["farm"])

JUDGED = 1000
"""Forecasts that are judged, the newest ones."""
_AGO = re.compile(r"(\d{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Line(BaseModel):
    """Seconds of one user, batch, checkpoint, day or worker; the key is empty for none."""

    key: str
    seconds: dict[Use, float]
    total: float


class Usage(BaseModel):
    """GPU-seconds by use. All lines add up to the wall clock of all sessions."""

    by: str
    since: datetime
    lines: list[Line]
    total: dict[Use, float]


class Judgement(BaseModel):
    """How good the forecasts of a moment were.

    ``error`` is the median of (seconds taken / p50 - 1): 0.1 means that batches took a tenth
    longer; ``miss`` is the median of the same without its sign.
    """

    moment: Literal["accepted", "half"]
    batches: int
    error: float | None
    miss: float | None
    within_p90: float | None = Field(description="share of batches; 0.9 is what was promised")


class Judgements(BaseModel):
    forecasts: list[Judgement]


@router.get("/usage", summary="What cards spent their seconds on")
def report(
    services: Serving,
    by: Annotated[str, Query(max_length=20, description=", ".join(usage.KEYS))] = "user",
    since: Annotated[str, Query(max_length=40, description="2026-11-20, or 24h, 7d")] = "30d",
) -> Usage:
    """Days and hours are UTC; of the last seven days every hour is known, before them every day."""
    begin = beginning(since)
    lines = usage.report(services.db, by=by, since=begin)
    total: dict[Use, float] = {}
    for line in lines:
        for use, seconds in line.seconds.items():
            total[use] = total.get(use, 0.0) + seconds
    shown = [Line(key=line.key, seconds=line.seconds, total=line.total) for line in lines]
    return Usage(by=by, since=begin, lines=shown, total=total)


@router.get("/usage/forecasts", summary="How good forecasts were")
def judged(services: Serving) -> Judgements:
    """Of the last batches that ended without having been cancelled, paused or moved."""
    past = forecasts.past(services.db, limit=JUDGED)
    return Judgements(
        forecasts=[
            _judgement(moment, [one for one in past if one.moment == moment])
            for moment in ("accepted", "half")
        ]
    )


def beginning(since: str) -> datetime:
    """When a time such as ``24h`` ago was, or an ISO date and time, in UTC where it says nothing.

    Raises:
        InvalidInput: it is neither.
    """
    try:
        if ago := _AGO.fullmatch(since):
            seconds = int(ago[1]) * _SECONDS[ago[2]]
            return datetime.now(UTC) - timedelta(seconds=seconds)
        told = datetime.fromisoformat(since)
        return told if told.tzinfo else told.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"since: {since[:40]!r} is no time.",
            field="since",
            value=since,
            remedy="Write 24h, 7d, or a date such as 2026-11-20.",
        ) from None


def _judgement(moment: Literal["accepted", "half"], past: Sequence[Past]) -> Judgement:
    errors = [one.taken / one.p50 - 1 for one in past if one.p50 > 0]
    within = [one.taken <= one.p90 for one in past]
    return Judgement(
        moment=moment,
        batches=len(past),
        error=median(errors) if errors else None,
        miss=median(map(abs, errors)) if errors else None,
        within_p90=sum(within) / len(within) if within else None,
    )
