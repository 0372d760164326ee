"""Measurements outlive the worker that made them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.db import measurements
from farm.db.database import Database
from farm.errors import Unavailable
from farm.spec.measurement import Call, Measurement
from farm.worker.notebook import Notebook

CARD = {"card": "NVIDIA GeForce RTX 3090", "torch": "2.14.1"}
LIMIT = 23 * 2**30
CALL = Call("denoise", "sdxl", 2_567_463_684, "float16", "sdpa", 1024**2, 8)
TAKEN = Measurement(CALL, seconds=0.25, bytes=3 * 2**30, outside=400 * 2**20)


def test_what_is_noted_is_known_in_the_next_life(db: Database) -> None:
    failed = Measurement(replace(CALL, rows=32), failed=True)
    notebook = Notebook(db, **CARD, limit=LIMIT)
    assert notebook.known() == []
    notebook.note(replace(TAKEN, seconds=0.5))
    notebook.note(TAKEN)
    notebook.note(failed)
    notebook.write()
    notebook.write()
    known = sorted(Notebook(db, **CARD, limit=LIMIT).known(), key=lambda one: one.call.rows)
    assert known == [TAKEN, failed]


def test_what_was_too_much_for_a_smaller_limit_says_nothing_of_the_whole_card(
    db: Database,
) -> None:
    smaller = Notebook(db, **CARD, limit=int(7.6 * 2**30))
    smaller.note(Measurement(CALL, failed=True))
    smaller.write()
    assert Notebook(db, **CARD, limit=LIMIT).known() == []
    assert Notebook(db, **CARD, limit=int(7.6 * 2**30) + 2**20).known() == smaller.known() != []


@pytest.mark.parametrize("other", [{"card": "NVIDIA H100"}, {"torch": "2.15.0"}])
def test_other_cards_and_versions_know_nothing_of_it(db: Database, other: dict[str, str]) -> None:
    measurements.record(db, [TAKEN], **CARD)
    assert measurements.known(db, **{**CARD, **other}) == []


def test_the_larger_of_two_readings_counts_and_the_later_clock(db: Database) -> None:
    measurements.record(db, [TAKEN], **CARD)
    later = Measurement(CALL, seconds=0.2, bytes=2**30, outside=2**20)
    measurements.record(db, [later], **CARD)
    assert measurements.known(db, **CARD) == [replace(later, bytes=TAKEN.bytes)]
    measurements.record(db, [Measurement(CALL, failed=True)], **CARD)
    assert measurements.known(db, **CARD) == [replace(later, bytes=TAKEN.bytes, failed=True)]


def test_what_is_old_is_not_believed(db: Database) -> None:
    measurements.record(db, [TAKEN], **CARD)
    with db.connection() as connection:
        connection.execute("UPDATE measurements SET measured_at = now() - interval '40 days'")
    assert measurements.known(db, **CARD) == []


def test_without_postgres_it_is_kept(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(db, **CARD, limit=LIMIT)
    notebook.note(TAKEN)
    with monkeypatch.context() as patched:

        def unreachable(*_: object, **__: object) -> None:
            raise Unavailable("Postgres is gone.")

        patched.setattr(measurements, "record", unreachable)
        patched.setattr(measurements, "known", unreachable)
        assert notebook.known() == ()
        notebook.write()
    notebook.write()
    assert notebook.known() == [TAKEN]
