"""How many event streams may be open at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address

from farm.errors import TooManyStreams

_OF_ONE = 64
"""Bits of an IPv6 address that tell clients apart: the rest of it each may choose at will."""


def client_at(address: str) -> str:
    """Whom an address counts as; a name that is none for itself."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found), _OF_ONE), strict=False))


class Seats:
    """Places for streams: each looks at Postgres again and again for as long as it is open, and
    opening one needs no key. For one thread.

    Args:
        most: that may be open in all.
        each: that one client may have.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most = most
        self._each = each
        self._taken: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """Places that are left in all."""
        return self._most - self._taken.total()

    @contextmanager
    def taken(self, who: str) -> Iterator[None]:
        """A place for a client.

        Raises:
            TooManyStreams: it has as many as one may, or all are taken.
        """
        if self._taken[who] >= self._each:
            raise TooManyStreams(
                f"{who} has {self._each} event streams open already.",
                field="events",
                value=who,
                remedy="Close some, or ask for the batch now and then instead.",
            )
        if not self.free:
            raise TooManyStreams(
                f"All {self._most} event streams that this API has are open.",
                field="events",
                remedy="Try again later, or ask for the batch now and then instead.",
            )
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]
