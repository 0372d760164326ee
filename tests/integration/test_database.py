"""The pool of connections: what is asked of Postgres has an end."""

from __future__ import annotations

import pytest

from farm.db.database import Database
from farm.errors import Unavailable


def test_a_statement_that_takes_too_long_is_given_up_and_the_next_one_served(db: Database) -> None:
    with Database(db.url, max_size=1, longest=0.1) as hasty:
        with pytest.raises(Unavailable, match="too long, and was given up"):
            hasty.one("SELECT pg_sleep(60)")
        assert hasty.one("SELECT 1 AS answer") == {"answer": 1}
