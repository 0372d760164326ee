"""Postgres goes away in each of its ways; whoever was cut off must not count twice."""

from __future__ import annotations

import os
import signal

from farm.embedded import sockets
from tests.conftest import eventually
from tests.crew import Crew
from tests.proxy import Proxy
from tests.saboteur import Saboteur


def test_the_kill_of_one_backend_resets_them_all(saboteur: Saboteur) -> None:
    """kill -9 of a backend: Postgres ends every connection and recovers."""
    batch = saboteur.begin()
    with saboteur.farm.database() as db:
        row = db.one("SELECT pid FROM pg_stat_activity WHERE application_name = 'cpu0' LIMIT 1")
    assert row
    with saboteur.breaking("kill -9 of a backend"):
        os.kill(row["pid"], signal.SIGKILL)
        eventually(saboteur.farm.answers)
    saboteur.finish(batch)


def test_connections_cut_again_and_again_cost_nothing(saboteur: Saboteur) -> None:
    batch = saboteur.begin(80)
    wasted = saboteur.wasted()
    while not batch.refresh().ended:
        with saboteur.farm.database() as db:
            db.all(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()
                     AND random() < 0.5"""
            )
        done = batch.counts["succeeded"]
        eventually(lambda done=done: batch.refresh().counts["succeeded"] > done or batch.ended)  # type: ignore[misc]
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted


def test_a_restart_costs_nothing(saboteur: Saboteur) -> None:
    batch = saboteur.begin()
    wasted = saboteur.wasted()
    saboteur.stop("postgres")
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted


def test_a_worker_cut_off_past_its_lease_is_fenced(saboteur: Saboteur) -> None:
    """It goes on with its images, and finds that they are not its own any more."""
    proxy = Proxy(sockets.urls(saboteur.farm.home)[0])
    crew = Crew(saboteur.farm, ["zombie"], FARM_DATABASE_URL=proxy.url, STANDIN_SECONDS="0.5")
    try:
        crew.start()
        zombie = crew.find("zombie")
        with saboteur.farm.database() as db:
            running = """SELECT FROM leases l JOIN sessions s ON s.id = l.session_id
                         WHERE s.worker = 'zombie' AND l.started_at IS NOT NULL"""
            batch = saboteur.farm.client.submit(prompt="a red apple", seed=1, count=80)
            eventually(lambda: len(db.all(running)) >= 2)
            with saboteur.breaking("a worker cut off from Postgres"):
                proxy.freeze()
                eventually(lambda: not db.all(running))
                saboteur.finish(batch)
                proxy.thaw()
                eventually(lambda: not zombie.is_running() or zombie.status() == "zombie")
            saboteur.check()
            saboteur.sweep()
    finally:
        proxy.thaw()
        crew.stop()
        proxy.close()
