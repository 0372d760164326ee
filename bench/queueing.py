"""What the queue of record costs: accepting batches, and placing jobs among many that wait.

    .venv/bin/python bench/queueing.py [--rounds 30]

Starts a Postgres of its own. A batch of a million jobs is accepted again and again, and one job of
a user with few and with many open batches, whose quota is heeded. Then a leader places 100 jobs a
cycle while 10 000, 100 000 and 1 000 000 jobs wait in 2000 batches of 200 users, at last on eight
checkpoints each, with nobody to send them to: when places became free, and when somebody has
submitted, so that it reads the open batches again. Beside times on the clock there are those of
processors, which others who use the machine change little: of place(), of the whole cycle, and of
Postgres in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from bench.postgres import DEFAULTS, cpu, postgres  # noqa: E402
from farm.api.submission import submit  # noqa: E402
from farm.db import assets, sessions, users  # noqa: E402
from farm.db.assets import Asset  # noqa: E402
from farm.db.database import Database  # noqa: E402
from farm.db.leases import Lease  # noqa: E402
from farm.db.sessions import NewSession  # noqa: E402
from farm.dispatch.dispatcher import Dispatcher  # noqa: E402
from farm.dispatch.leadership import leadership  # noqa: E402
from farm.spec.batch import BatchRequest  # noqa: E402

USERS, BATCHES, PLACES = 200, 2000, 100


class Nobody:
    """Stands in for the broker: messages go nowhere."""

    def publish(self, _: Sequence[Lease]) -> bool:
        return True

    def waiting(self, _: str) -> None:
        return None

    def forget(self, _: Sequence[str]) -> None:
        return None


def accepting(db: Database, rounds: int) -> list[float]:
    """Seconds to accept a batch of a million jobs."""
    owner = users.local(db)
    axes = {"steps": "1-100", "cfg_scale": "1-10 [10]"}
    request = BatchRequest(prompt="a frog", checkpoint="m", axes=axes, count=1000, seed=1)
    return [_timed(lambda: submit(db, owner, request, None)) for _ in range(rounds)]


def accepting_more(db: Database, rounds: int, *, batches: int) -> list[float]:
    """Seconds to accept one job of a user who has so many open batches; for the first what waits is
    summed up."""
    owner = users.local(db)
    with db.connection() as connection:
        connection.execute("TRUNCATE batches CASCADE")
        connection.execute("UPDATE users SET counted_at = NULL")
        connection.execute(
            """INSERT INTO batches (user_id, name, priority, total)
               SELECT %s, '', 50, 1 FROM generate_series(1, %s)""",
            (owner.id, batches),
        )
        connection.execute("ANALYZE batches")
    request = BatchRequest(prompt="a frog", checkpoint="m", seed=1)
    return [_timed(lambda: submit(db, owner, request, None, quota=10**9)) for _ in range(rounds)]


def fill(db: Database, jobs: int, *, checkpoints: int) -> None:
    """So many jobs in BATCHES batches of USERS users, on so many checkpoints each, and places for
    PLACES of them."""
    names = [f"m{number}" for number in range(checkpoints)]
    assets.register(db, "host", [Asset(name, "sd15", 1, f"/{name}", {}, None) for name in names])
    each = jobs // BATCHES // checkpoints
    with db.connection() as connection:
        connection.execute("TRUNCATE batches, sessions, leases, users CASCADE")
        connection.execute(
            "INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, %s) n", (USERS,)
        )
        connection.execute(
            """INSERT INTO batches (user_id, name, priority, total, spec)
               SELECT u.id, '', 50, %s,
                      jsonb_build_object('template', %s::jsonb, 'axes', %s::jsonb,
                                         'count', %s::int)
               FROM users u, generate_series(1, %s)""",
            (
                each * checkpoints,
                _template(),
                json.dumps([["checkpoint", names]]),
                each,
                BATCHES // USERS,
            ),
        )
        connection.execute("ANALYZE")
    for number in range(4):  # each is sent half of what it may hold, if that is work enough
        device = NewSession(f"s{number}", f"gpu{number}", "host", 1, {}, "24gb", PLACES // 2)
        sessions.open(db, device, lease=3600)


def placing(db: Database, server: psutil.Process, rounds: int, *, changed: bool) -> None:
    """Print what cycles take that place PLACES jobs each."""
    from farm.dispatch import dispatcher as module

    spent: dict[str, list[float]] = {"clock": [], "place()": [], "dispatcher": [], "Postgres": []}
    place = module.place

    def timed_place(snapshot: object) -> object:
        began = time.process_time()
        found = place(snapshot)  # type: ignore[arg-type]
        spent["place()"].append(time.process_time() - began)
        return found

    module.place = timed_place  # type: ignore[assignment]
    with leadership(db, Event()) as lead:
        assert lead
        dispatcher = Dispatcher(lead.db, Nobody())  # type: ignore[arg-type]
        for _ in range(rounds + 6):  # the first ones read specifications, and prepare statements
            began = time.perf_counter(), time.process_time(), cpu([server])
            placed = dispatcher.cycle(changed=changed)
            spent["clock"].append(time.perf_counter() - began[0])
            spent["dispatcher"].append(time.process_time() - began[1])
            spent["Postgres"].append(cpu([server]) - began[2])
            assert placed == PLACES, placed
            with db.connection() as connection:
                connection.execute("DELETE FROM leases")
    module.place = place
    measured = {name: values[6:] for name, values in spent.items()}
    cuts = statistics.quantiles(measured["clock"], n=20)
    told = [f"p50 {1000 * cuts[9]:5.1f}, p95 {1000 * cuts[18]:5.1f} ms; of processors"]
    told += [f"{name} {1000 * statistics.median(measured[name]):.1f}" for name in measured][1:3]
    told += [f"Postgres {1000 * statistics.fmean(measured['Postgres']):.1f}"]  # in steps of 10 ms
    print("   ", "after a submission " if changed else "after places freed", ", ".join(told))


def _template() -> str:
    return json.dumps(
        {**DEFAULTS, "checkpoint": "m0", "prompt": "p", "sampler": "Euler", "seed": 1}
    )


def _timed(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def _print(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=20)
    print(f"  {name:42} p50 {1000 * cuts[9]:7.1f} ms   p95 {1000 * cuts[18]:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    gc.freeze()  # as a dispatcher does
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder,
        postgres(Path(folder)) as (url, server),
        Database(url) as db,
    ):
        print(f"{rounds} rounds, load {os.getloadavg()[0]:.1f}")
        _print("accept a batch of 1 000 000 jobs", accepting(db, rounds))
        for batches in (10, 100_000):
            first, *others = accepting_more(db, rounds, batches=batches)
            _print(f"accept a job beside {batches} open batches", others)
            print(f"    {1000 * first:.1f} ms where what waits is summed up")
        for jobs, checkpoints in ((10_000, 1), (100_000, 1), (1_000_000, 1), (1_000_000, 8)):
            fill(db, jobs, checkpoints=checkpoints)
            print(f"  place {PLACES} of {jobs} jobs, batches on {checkpoints} checkpoints each")
            for changed in (False, True):
                placing(db, server, rounds, changed=changed)


if __name__ == "__main__":
    main()
