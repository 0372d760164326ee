"""SIGSTOP of every process in the middle of a batch, and SIGCONT when others took its place."""

from __future__ import annotations

import random

import pytest

from tests.conftest import eventually
from tests.saboteur import VICTIMS, Saboteur


def test_a_frozen_worker_comes_back_as_a_stranger(saboteur: Saboteur) -> None:
    """Past its lease its jobs belong to others; what it still holds must not count."""
    batch = saboteur.begin()
    with saboteur.farm.database() as db, saboteur.freezing("worker"):
        frozen = "SELECT FROM sessions WHERE worker = 'cpu0' AND ended_at IS NULL"
        eventually(lambda: not db.all(frozen))
    saboteur.finish(batch)
    assert batch.counts["succeeded"] == batch.total


@pytest.mark.parametrize("victim", ["dispatcher", "standby"])
def test_a_frozen_dispatcher_is_followed(saboteur: Saboteur, victim: str) -> None:
    """One of the two leads, and nobody knows which."""
    batch = saboteur.begin(80)
    with saboteur.freezing(victim):
        saboteur.finish(batch)


@pytest.mark.parametrize("victim", ["api", "valkey"])
def test_a_frozen_server_delays(saboteur: Saboteur, victim: str) -> None:
    batch = saboteur.begin()
    saboteur.freeze(victim, seconds=3)
    saboteur.finish(batch)


def test_a_postgres_frozen_for_longer_than_every_lease_costs_nothing(saboteur: Saboteur) -> None:
    """No heartbeat arrived, but nobody is dead."""
    batch = saboteur.begin()
    wasted = saboteur.wasted()
    saboteur.freeze("postgres", seconds=7)
    ledger = saboteur.finish(batch)
    assert ledger.wasted.total() == wasted


def test_two_frozen_at_random(saboteur: Saboteur) -> None:
    batch = saboteur.begin()
    saboteur.freeze(*random.sample(VICTIMS, 2), seconds=6)
    saboteur.finish(batch)
