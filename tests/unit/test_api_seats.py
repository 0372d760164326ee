"""How many event streams may be open: one client's, and all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from farm.api.seats import Seats, client_at
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


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::7", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # IPv4 at a socket for both
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_addresses_that_one_client_may_choose_count_as_one(address: str, client: str) -> None:
    assert client_at(address) == client
