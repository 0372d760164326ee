"""How many event streams may be open: one client's, and all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from farm.api.seats import Seats
from farm.errors import TooManyStreams


def test_a_client_has_no_more_than_its_own_and_all_together_no_more_than_there_are() -> None:
    seats = Seats(most=3, each=2)
    with ExitStack() as ann, ExitStack() as bob:
        for _ in range(2):
            ann.enter_context(seats.taken("ann"))
        with pytest.raises(TooManyStreams, match="ann has 2"):
            ann.enter_context(seats.taken("ann"))
        bob.enter_context(seats.taken("bob"))
        with pytest.raises(TooManyStreams, match="All 3"):
            bob.enter_context(seats.taken("bob"))
        ann.close()
        bob.enter_context(seats.taken("bob"))


def test_what_fails_gives_its_place_back() -> None:
    seats = Seats(most=1, each=1)
    for _ in range(2):
        with pytest.raises(KeyError), seats.taken("ann"):
            raise KeyError
