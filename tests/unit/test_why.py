"""Why a job waits, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.db.reasons import Facts
from farm.dispatch.forecast import Work
from farm.dispatch.reach import Reach
from farm.dispatch.why import Place, before, explain

GIB = 2**30
FACTS = Facts(
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
    tags=("a100", "red"),
    workers=("gpu0", "gpu1", "gpu2"),
    queued=0,
)
TWO = ("gpu0", "gpu1")
REACH = Reach(
    checkpoints=("demo",),
    having=("gpu0", "gpu1", "gpu2"),
    tagged=TWO,
    fitting=TWO,
    holding=("gpu0",),
)


@pytest.mark.parametrize(
    ("state", "facts", "reach", "says", "remedy"),
    [
        ("running", {}, {}, "gpu0 is making it.", None),
        ("assigned", {"queued": 3}, {}, "It is with gpu0, which holds 3 jobs from before", None),
        ("assigned", {}, {"holding": ()}, "with gpu0; demo is loading there, or will be.", None),
        ("waiting", {"retry_seconds": 14.2, "retry_reason": "no disk"}, {}, "14 s: no disk.", None),
        ("waiting", {"retry_seconds": -2.0, "retry_reason": "x."}, {}, "about to be tried", None),
        # What never can be, as things are.
        ("pending", {"batch_state": "paused"}, {}, "Batch 7 is paused.", "farm resume 7"),
        ("waiting", {"batch_state": "paused"}, {}, "Batch 7 is paused.", "farm resume 7"),
        ("pending", {"workers": ()}, {}, "No worker is alive.", "farm worker"),
        (
            "pending",
            {"workers": (), "refusing": ("gpu0: its disk is full",)},
            {},
            "No worker can begin a job: gpu0: its disk is full",
            "by themselves",
        ),
        (
            "pending",
            {"workers": (), "away": ("gpu0: failed thrice",)},
            {},
            "Every worker is in quarantine: gpu0: failed thrice",
            "farm workers resume NAME",
        ),
        (
            "pending",
            {},
            {"having": ()},
            "No host with a live worker has the checkpoint 'demo'.",
            "model folder",
        ),
        (
            "pending",
            {},
            {"having": (), "checkpoints": ("demo", "large")},
            "No host with a live worker has the checkpoints 'demo' and 'large'.",
            "model folder",
        ),
        (
            "pending",
            {},
            {"tagged": (), "tags": frozenset({"red"})},
            "No live worker that has 'demo' is tagged a100 and red.",
            "farm workers tag gpu0 +a100",
        ),
        # Each tag is somewhere, but not both on one worker.
        (
            "pending",
            {},
            {"tagged": (), "tags": frozenset({"a100", "red"})},
            "is tagged a100 and red.",
            "farm workers tag gpu0 +a100 +red",
        ),
        (
            "pending",
            {},
            {"fitting": (), "peak": 30 * GIB, "room": 24 * GIB, "nearest": (1024, 768)},
            "It takes 30.0 GiB and fits on none of gpu0, gpu1, the largest of which has 24.0 GiB.",
            "The nearest size that fits is 1024x768.",
        ),
        ("pending", {}, {"fitting": ()}, "It fits on none of gpu0, gpu1.", "smaller checkpoint"),
        (
            "pending",
            {"cap": 1, "in_flight": 1},
            {},
            "ann has 1 job in flight, and may have 1.",
            "farm share ann --cap N",
        ),
        # What will be.
        ("pending", {}, {"free": 2}, "A place is free; it is about to be placed.", None),
        ("pending", {"others": 1}, {"free": 2, "holding": ()}, "No worker holds demo", None),
        ("pending", {}, {}, "All places of gpu0, gpu1 are taken.", None),
        ("waiting", {"retry_seconds": -1.0}, {}, "All places of gpu0, gpu1 are taken.", None),
        (
            "pending",
            {"before_in_batch": 40, "before_of_user": 1, "others": 2},
            {},
            "All places of gpu0, gpu1 are taken; 1 job of ann's other batches and 40 jobs of its "
            "own batch go before it, about 90 GPU-seconds; 2 other users take turns with ann.",
            None,
        ),
        ("pending", {"higher": 5}, {"free": 1}, "5 jobs of a higher class go before it", None),
        ("succeeded", {}, {}, "It has ended: succeeded.", None),
    ],
)
def test_reasons(
    state: str,
    facts: dict[str, object],
    reach: dict[str, object],
    says: str,
    remedy: str | None,
) -> None:
    told = explain(
        Place(7, state, "gpu0", before=90.0),
        replace(FACTS, **facts),  # type: ignore[arg-type]
        replace(REACH, **reach),  # type: ignore[arg-type]
    )
    assert says in told.reason
    assert (told.remedy is None) if remedy is None else (remedy in str(told.remedy))


def test_work_that_goes_before() -> None:
    works = [
        Work(1, user=1, priority=50, seconds=1.0, jobs=1),  # own, and older
        Work(7, user=1, priority=50, seconds=10.0, jobs=1),
        Work(8, user=1, priority=60, seconds=100.0, jobs=1),  # own, and more important
        Work(9, user=1, priority=50, seconds=1000.0, jobs=1),
        Work(2, user=2, priority=60, seconds=1e4, jobs=1),  # of another, in the same class
        Work(3, user=2, priority=90, seconds=1e5, jobs=1),
    ]
    assert before(works, 7) == 100101.0
    assert before(works, 99) is None
