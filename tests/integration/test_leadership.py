"""Who leads, on a real Postgres: no write of a leader follows what its successor writes."""

from __future__ import annotations

import threading

import pytest

from farm.db import queries, wakeup
from farm.db.database import Database
from farm.dispatch import leadership as leading
from farm.dispatch.leadership import Leadership, leadership
from farm.errors import Unavailable
from tests.conftest import eventually


def test_a_leader_that_was_followed_writes_nothing_more(db: Database) -> None:
    with (
        wakeup.listener(db.url, name="first") as first,
        wakeup.listener(db.url, name="second") as second,
    ):
        epoch = first.lead()
        assert epoch
        fenced = db.fenced(epoch)
        assert second.lead() is None
        fenced.check()
        db.all(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='first'"
        )
        eventually(lambda: second.lead() == epoch + 1)
        with pytest.raises(Unavailable, match="Another dispatcher leads"):
            fenced.one("UPDATE leader SET name = 'a ghost' RETURNING epoch")
        second.beat(epoch + 1)


def test_nobody_follows_in_the_middle_of_a_write(db: Database) -> None:
    """Of a leader whose lock is lost, but whose other connections still work."""
    with (
        wakeup.listener(db.url, name="first") as first,
        wakeup.listener(db.url, name="second") as second,
    ):
        epoch = first.lead()
        assert epoch
        with db.fenced(epoch).connection() as connection:
            with Database(db.url) as other:  # a transaction sees no news of activity
                other.all(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE application_name = 'first'"""
                )
                left = "SELECT FROM pg_stat_activity WHERE application_name = 'first'"
                eventually(lambda: not other.all(left))
            assert [second.lead() for _ in range(3)] == [None] * 3
            connection.execute("UPDATE leader SET name = 'the first, still'")
        assert second.lead() == epoch + 1


def test_a_leader_frozen_in_the_middle_of_a_write_is_ousted(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "STALE", 0.5)
    stop = threading.Event()
    with Database(db.url, name="frozen") as own, leadership(own, stop) as frozen:
        assert frozen
        with pytest.raises(Unavailable):
            _freeze_in_a_write(frozen, db, stop)


def _freeze_in_a_write(frozen: Leadership, db: Database, stop: threading.Event) -> None:
    with frozen.db.connection() as connection:
        connection.execute("UPDATE leader SET name = name")
        with leadership(db, stop) as successor:
            assert successor
            assert successor.epoch == frozen.epoch + 1
        connection.execute("SELECT 1")


def test_who_stands_by_hears_no_wakeups_that_nobody_would_take_from_its_memory(
    db: Database,
) -> None:
    with (
        wakeup.listener(db.url, name="first") as leader,
        wakeup.listener(db.url, name="second") as standby,
    ):
        assert leader.lead()
        for _ in range(3):
            with db.connection() as connection:
                connection.execute(queries.WAKE)
        assert standby.lead() is None
        assert list(standby._connection.notifies(timeout=0)) == []
        assert len(list(leader._connection.notifies(timeout=20, stop_after=3))) == 3


def test_a_place_that_became_free_is_told_from_other_news(db: Database) -> None:
    """Silence counts as news: some of what changes tells nobody, such as the time."""

    def say(statement: str) -> None:
        with db.connection() as connection:
            connection.execute(statement)

    with wakeup.listener(db.url, name="first") as listener:
        assert listener.lead()
        say(queries.WAKE_FOR_PLACE)
        assert listener.wait(30) is False
        say(queries.WAKE)
        assert listener.wait(30) is True
        assert listener.wait(0.01) is True
        assert listener.wait(0) is False
