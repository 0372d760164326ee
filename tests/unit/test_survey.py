"""What the dispatcher remembers between two looks at the queue."""

from __future__ import annotations

from typing import Any

from farm.db.leases import Claim
from farm.dispatch.accounts import Accounts
from farm.dispatch.placement import Placed
from farm.dispatch.survey import Survey


def test_who_gives_way_for_the_first_time_has_not_waited_before() -> None:
    no_database: Any = None
    survey = Survey(no_database, Accounts())
    gave_way, served = Placed([], frozenset({1})), Placed([Claim(1, "s", 1)], frozenset())
    waited = []
    for found, seconds in [(gave_way, 3600), (gave_way, 5), (gave_way, 7), (served, 1)]:
        survey.wait(found, seconds)
        waited.append(survey._passed.get(1))
    assert waited == [0.0, 5.0, 12.0, None]
