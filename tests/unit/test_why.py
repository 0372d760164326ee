"""Why a job waits, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.db.reasons import Facts
from farm.dispatch.why import explain

NOTHING = Facts(
    checkpoint="demo",
    batch_state="open",
    user="ann",
    retry_seconds=None,
    retry_reason=None,
    cap=None,
    in_flight=0,
    before_in_batch=0,
    before_of_user=0,
    higher=0,
    others=0,
    workers=("gpu0", "gpu1"),
    able=("gpu0", "gpu1"),
    free=0,
    queued=0,
)


@pytest.mark.parametrize(
    ("state", "changes", "says"),
    [
        ("running", {}, "gpu0 is making it."),
        ("assigned", {"queued": 3}, "It is with gpu0, which holds 3 jobs from before it"),
        ("waiting", {"retry_seconds": 14.2, "retry_reason": "no disk"}, "in 14 s: no disk."),
        ("waiting", {"retry_seconds": -2.0, "retry_reason": "x."}, "about to be tried again: x."),
        ("pending", {"batch_state": "paused"}, "Batch 7 is paused."),
        ("pending", {"workers": (), "able": ()}, "No worker is alive."),
        (
            "pending",
            {"workers": (), "able": (), "refusing": ("gpu0: the disk is full.",)},
            "No worker can begin a job: gpu0: the disk is full.",
        ),
        ("pending", {"able": ()}, "No host with a live worker has the checkpoint 'demo'."),
        ("pending", {"cap": 1, "in_flight": 1}, "ann has 1 job in flight, and may have 1."),
        ("pending", {"free": 2}, "A place is free; it is about to be placed."),
        ("pending", {}, "All places of gpu0, gpu1 are taken."),
        (
            "pending",
            {"before_in_batch": 40, "before_of_user": 1, "others": 2},
            "All places of gpu0, gpu1 are taken; 1 job of ann's other batches and 40 jobs of its "
            "own batch go before it; 2 other users take turns with ann.",
        ),
        ("pending", {"higher": 5, "free": 1}, "5 jobs of a higher class go before it."),
        ("succeeded", {}, "It has ended: succeeded."),
    ],
)
def test_reasons(state: str, changes: dict[str, object], says: str) -> None:
    told = explain(7, state, "gpu0", replace(NOTHING, **changes))  # type: ignore[arg-type]
    assert says in told.reason


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"batch_state": "paused"}, "farm resume 7"),
        ({"cap": 0}, "farm share ann --cap N"),
        ({"able": ()}, "model folder"),
        ({}, None),
    ],
)
def test_remedies(changes: dict[str, object], remedy: str | None) -> None:
    told = explain(7, "pending", None, replace(NOTHING, **changes)).remedy  # type: ignore[arg-type]
    assert remedy is None if told is None else remedy and remedy in told
