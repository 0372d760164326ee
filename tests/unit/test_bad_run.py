from __future__ import annotations

from datetime import UTC, datetime

import pytest

from farm.db.health import Failure
from farm.dispatch.health import bad_run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def failures(told: str) -> list[Failure]:
    """``7 8:s1`` as the oldest of batch 7 and a job of batch 8 that session s1 died with."""
    found = []
    for number, word in enumerate(told.split()):
        batch, _, session = word.partition(":")
        at = NOON.replace(minute=number)
        found.append(Failure("host", "gpu0", session or batch, int(batch), at, "x"))
    return found[::-1]


@pytest.mark.parametrize(
    ("told", "first"),
    [
        ("", None),
        ("7 8", None),
        ("7 8 9", 7),
        ("7 7 7 7", None),
        ("7 7 8 9", 7),
        ("6 7 8 9", 7),
        ("7 8 7 8 7", None),
        ("7 8 7 9", 8),
        # One death takes many jobs of others.
        ("7:s1 8:s1 9:s1", None),
        ("7:s1 8:s1 9:s1 7", None),
        ("7:s1 8:s2 9:s3", 7),
        ("7:s1 8 9", 7),
        # One job kills whoever makes it.
        ("7:s1 7:s2 7:s3", None),
        ("7:s1 8:s1 7:s2 7:s3", None),
    ],
)
def test_three_failures_in_a_row_of_three_batches(told: str, first: int | None) -> None:
    found = bad_run(failures(told))
    assert (found and found.batch_id) == first
