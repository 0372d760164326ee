"""Chaos by hand: random faults over one batch, and what they wasted.

    make chaos            # or: python -m tests.chaos [--faults 200] [--jobs 2000] [--seed N]

Starts a farm of its own with four stand-in workers and two dispatchers, breaks something every
few seconds until so many faults are done, lets the batch end, and checks the books: every job has
one image, nothing is left over, and what was wasted is at most one attempt for each job that was in
flight at a fault. (A job during which three workers died has failed by the rules, and is counted.)
The seed gives the same faults again, at other moments.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from farm.db.database import Database
from farm.embedded import sockets
from farm.errors import FarmError
from tests.conftest import eventually
from tests.crew import Crew
from tests.ledger import Fault
from tests.saboteur import VICTIMS, Saboteur
from tests.wholefarm import WholeFarm

LEASE = 5.0
WORKERS = ("cpu0", "cpu1", "cpu2", "cpu3")
_KILLED = (*VICTIMS[1:], *WORKERS, "standby")


class Chaos:
    """Faults to choose from; each returns when it is over, though perhaps not what it did."""

    def __init__(self, saboteur: Saboteur, dice: random.Random) -> None:
        self._saboteur = saboteur
        self._dice = dice
        self.faults: list[tuple[Callable[[], None], int]] = [
            (self.kill, 8),
            (self.kill_two, 4),
            (self.freeze, 6),
            (self.outlast, 3),
            (self.stop, 3),
            (self.forget, 3),
            (self.cut_broker, 3),
            (self.cut_postgres, 4),
            (self.kill_backend, 1),
            (self.fill_disk, 2),
            (self.skew_clock, 2),
        ]

    def strike(self) -> str:
        """Do one of them; its name."""
        faults, weights = zip(*self.faults, strict=True)
        before = len(self._saboteur.faults)
        self._dice.choices(faults, weights)[0]()
        return self._saboteur.faults[before].name

    def kill(self) -> None:
        self._saboteur.kill(self._dice.choice(_KILLED))

    def kill_two(self) -> None:
        self._saboteur.kill(*self._dice.sample(_KILLED, 2))

    def freeze(self) -> None:
        self._saboteur.freeze(self._dice.choice(_KILLED), seconds=self._dice.uniform(0.5, 8.0))

    def outlast(self) -> None:
        """A worker is back when others have its jobs."""
        victim, seconds = self._dice.choice(WORKERS), self._dice.uniform(1.5, 3.0) * LEASE
        self._saboteur.freeze(victim, seconds=seconds, told="past its lease")

    def stop(self) -> None:
        self._saboteur.stop(self._dice.choice(_KILLED))

    def forget(self) -> None:
        with self._saboteur.breaking("FLUSHALL"):
            self._try(lambda: self._saboteur.valkey().flushall())

    def cut_broker(self) -> None:
        with self._saboteur.breaking("connections to the broker cut"):
            self._try(
                lambda: self._saboteur.valkey().execute_command("CLIENT", "KILL", "TYPE", "normal")
            )

    def cut_postgres(self) -> None:
        with self._saboteur.breaking("connections to Postgres cut"):
            self._try(lambda: self._sql("pg_terminate_backend(pid)"))

    def kill_backend(self) -> None:
        with self._saboteur.breaking("kill -9 of a backend"):
            self._try(self._kill_backend)
            eventually(self._saboteur.farm.answers)

    def fill_disk(self) -> None:
        self._file("full", "", "a full disk")

    def skew_clock(self) -> None:
        self._file("clock", self._dice.choice(["3600", "-3600"]), "clocks that jump by an hour")

    def _file(self, name: str, content: str, called: str) -> None:
        file = self._saboteur.crew.faults / name
        with self._saboteur.breaking(called):
            file.write_text(content)
            time.sleep(self._dice.uniform(0.5, 4.0))
            file.unlink()

    def _kill_backend(self) -> None:
        pids = self._sql("pid")
        if pids:
            os.kill(self._dice.choice(pids), signal.SIGKILL)

    def _sql(self, what: str) -> list[int]:
        with Database(sockets.urls(self._saboteur.farm.home)[0], max_size=1) as db:
            rows = db.all(
                f"""SELECT {what} AS found FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                      AND backend_type = 'client backend'"""
            )
        return [row["found"] for row in rows]

    def _try(self, act: Callable[[], object]) -> None:
        """What is just away cannot be broken further."""
        try:
            act()
        except (FarmError, OSError, RedisError) as error:
            print(f"    ({error})")


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"{options.faults} faults over {options.jobs} jobs, seed {seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="farm-chaos-", dir="/tmp"))
    farm = WholeFarm(home / "farm", workers="0", FARM_LEASE_SECONDS=str(LEASE))
    farm.start()
    crew = Crew(farm, WORKERS, dispatchers=1, STANDIN_SECONDS=str(options.seconds))
    try:
        crew.start()
        saboteur = Saboteur(farm, crew)
        _run(saboteur, Chaos(saboteur, random.Random(seed)), options)
    finally:
        crew.stop()
        farm.stop()
    shutil.rmtree(home)
    return 0


def _run(saboteur: Saboteur, chaos: Chaos, options: argparse.Namespace) -> None:
    began = time.monotonic()
    batch = saboteur.begin(options.jobs)
    kinds: Counter[str] = Counter()
    for number in range(1, options.faults + 1):
        name = chaos.strike()
        kinds[name] += 1
        print(f"{time.monotonic() - began:7.1f} s  {number:3} {name}", flush=True)
        time.sleep(options.pause)
        if number % 25 == 0 or number == options.faults:
            done = _done(saboteur)
            print(f"    {done} of {batch.total} jobs are done", flush=True)
            assert done < batch.total, "the faults must hit something: let images take longer"
    ledger = saboteur.finish(batch, within=3600)
    print("swept:")
    saboteur.sweep()
    hit = sum(_in_flight(saboteur, fault) for fault in saboteur.faults)
    print("\n".join(f"  {count:4} {kind}" for kind, count in sorted(_kinds(kinds).items())))
    print(f"{time.monotonic() - began:.0f} s; {kinds.total()} faults hit {hit} jobs in flight,")
    print(
        f"and wasted {ledger.wasted.total()} attempts, {ledger.wasted.total() / hit:.1%} of those"
    )
    assert ledger.wasted.total() <= hit
    assert ledger.succeeded + ledger.failed == batch.total
    with saboteur.farm.database() as db:
        failed = db.all(
            "SELECT ord, error ->> 'title' AS title FROM outcomes WHERE error IS NOT NULL"
        )
    print(f"failed, because three workers died with them: {len(failed)}")
    assert all(row["title"] == "Worker lost" for row in failed), failed


def _kinds(names: Counter[str]) -> Counter[str]:
    """How many there were of each kind, whoever was hit."""
    kinds: Counter[str] = Counter()
    for name, count in names.items():
        kinds[" ".join(re.sub(f"{'|'.join(_KILLED)}| and", "", name).split())] += count
    return kinds


def _in_flight(saboteur: Saboteur, fault: Fault) -> int:
    """Attempts that were in flight while something was broken."""
    with saboteur.farm.database() as db:
        found = db.one(
            """SELECT count(DISTINCT (batch_id, ord)) AS jobs FROM attempts
               WHERE ended_at >= %(began)s AND assigned_at <= %(ended)s""",
            vars(fault),
        )
    assert found
    return int(found["jobs"])


def _done(saboteur: Saboteur) -> int:
    with saboteur.farm.database() as db:
        found = db.one("SELECT count(*) AS done FROM outcomes")
    assert found
    return int(found["done"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="of an earlier run")
    parser.add_argument("--seconds", type=float, default=1.8, help="that an image takes")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between faults")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
