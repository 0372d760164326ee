"""kill -9 of every process in the middle of a batch, alone and together."""

from __future__ import annotations

import contextlib
import random

import pytest

from tests.saboteur import VICTIMS, Saboteur


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9_of_one(saboteur: Saboteur, victim: str) -> None:
    others = [saboteur.process(name) for name in ("cpu0", "cpu1") if victim != "worker"]
    batch = saboteur.begin()
    saboteur.kill(victim)
    saboteur.finish(batch)
    assert all(other.is_running() for other in others), "a worker needs nobody to live"


@pytest.mark.parametrize("_", range(2))
def test_kill_9_of_two_at_random(saboteur: Saboteur, _: int) -> None:
    batch = saboteur.begin()
    saboteur.kill(*random.sample(VICTIMS, 2))
    saboteur.finish(batch)


def test_kill_9_of_all(saboteur: Saboteur) -> None:
    batch = saboteur.begin()
    saboteur.kill(*VICTIMS, "cpu1", "standby")
    saboteur.finish(batch)


def test_a_job_that_kills_its_workers_fails_with_its_history(saboteur: Saboteur) -> None:
    """Others that were with it in the process are tried again; it itself ends alone."""
    batch = saboteur.begin()
    with contextlib.ExitStack() as stack:
        for time in ("first", "second", "third"):
            stack.enter_context(saboteur.breaking(f"poison, for the {time} time"))
        poison = saboteur.farm.client.submit(prompt="poison", count=1)
        ledger = saboteur.finish(poison, batch)
    assert poison.counts["failed"] == 1
    assert batch.counts["succeeded"] == batch.total
    assert ledger.failed >= 1
