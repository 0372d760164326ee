"""What the dispatcher remembers between two looks at the queue."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from farm.db import batches
from farm.db.leases import Claim
from farm.dispatch.accounts import Accounts
from farm.dispatch.needs import Needs
from farm.dispatch.placement import Placed
from farm.dispatch.survey import Survey
from farm.spec.batch import BatchSpec
from tests.records import TEMPLATE


def test_who_gives_way_for_the_first_time_has_not_waited_before() -> None:
    no_database: Any = None
    survey = Survey(no_database, Accounts())
    gave_way, served = Placed([], frozenset({(1, 7)})), Placed([Claim(1, "s", 1, 7)], frozenset())
    waited = []
    for found, seconds in [(gave_way, 3600), (gave_way, 5), (gave_way, 7), (served, 1)]:
        survey.wait(found, seconds)
        waited.append(survey._passed.get((1, 7)))
    assert waited == [0.0, 5.0, 12.0, None]


def test_of_specifications_only_a_few_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have 32 MB, and of each user 64 batches are looked at."""
    read: list[weakref.ref[BatchSpec]] = []

    def specification(_: Any, batch_id: int) -> BatchSpec:
        spec = BatchSpec(template=TEMPLATE, count=batch_id)
        read.append(weakref.ref(spec))
        return spec

    monkeypatch.setattr(batches, "specification", specification)
    no_database: Any = None
    needs = Needs(no_database)
    for _ in range(2):
        assert [needs.of(batch, 0).until for batch in range(1, 101)] == [*range(1, 101)]
    assert len(read) == 100, "what was found out once is known"
    assert sum(one() is not None for one in read) < 20
