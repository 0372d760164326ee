"""Breaks a farm in every way, remembers when it did, and checks the books."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from unittest.mock import patch

import psutil
import redis

from farm.broker.progress import client_url
from farm.broker.queue import Publisher
from farm.client import Batch
from farm.dispatch import housekeeping
from farm.dispatch.housekeeping import Housekeeper, Keep
from farm.embedded import sockets
from farm.errors import Unavailable
from farm.storage import ImageStore
from tests.conftest import eventually
from tests.crew import Crew
from tests.ledger import Fault, Ledger, check
from tests.wholefarm import WholeFarm

VICTIMS = ("worker", "dispatcher", "api", "valkey", "postgres")


class Saboteur:
    """Breaks ``farm`` and its ``crew``; ``faults`` is all that was broken so far."""

    def __init__(self, farm: WholeFarm, crew: Crew) -> None:
        self.farm = farm
        self.crew = crew
        self.faults: list[Fault] = []

    def begin(self, count: int = 40, **fields: object) -> Batch:
        """A batch that is well under way, and far from done."""
        batch = self.farm.client.submit(
            **{"prompt": "a red apple", "seed": 1, "count": count, **fields}
        )
        eventually(lambda: batch.refresh().counts["succeeded"] >= 4)
        return batch

    def finish(self, *batches: Batch, within: float = 90) -> Ledger:
        """Wait for the end of batches, and check the books of all there are."""
        for batch in batches:
            eventually(lambda batch=batch: _ended(batch), within=within, every=0.2)  # type: ignore[misc]
        return self.check()

    def check(self) -> Ledger:
        with self.farm.database() as db:
            ledger = check(db, ImageStore(str(self.farm.home / "images")), self.faults)
        print(ledger)
        return ledger

    def sweep(self) -> Ledger:
        """Sweep as is done a day after a batch has ended: then rows name all files there are."""
        publisher = Publisher(sockets.urls(self.farm.home)[1])
        keeper = Housekeeper(ImageStore(str(self.farm.home / "images")), publisher, Keep())
        with patch.object(housekeeping, "SWEEP_AFTER", 0.0), self.farm.database() as db:
            eventually(lambda: not db.all("SELECT FROM batches WHERE ended_at IS NULL"))
            while keeper.slice(db):
                pass
        publisher.close()
        ledger = self.check()
        assert ledger.orphans == []
        return ledger

    def wasted(self) -> int:
        """Attempts that were begun and came to nothing so far."""
        with self.farm.database() as db:
            found = db.one(
                """SELECT count(*) AS wasted FROM attempts
                   WHERE result IN ('lost', 'retry') OR result = 'release' AND error IS NULL"""
            )
        assert found
        return int(found["wasted"])

    def breaking(self, name: str) -> Fault:
        """A fault to be put around what breaks something."""
        self.faults.append(Fault(name))
        return self.faults[-1]

    def kill(self, *victims: str) -> None:
        """kill -9, all at once."""
        processes = [self.process(victim) for victim in victims]
        with self.breaking(f"kill -9 of {' and '.join(victims)}"):
            for process in processes:
                process.kill()
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    eventually(lambda it=process: not it.is_running() or it.status() == "zombie")  # type: ignore[misc]
            if "postgres" in victims:  # until it is back, and they have had time to notice
                eventually(self.farm.answers)

    @contextlib.contextmanager
    def freezing(self, *victims: str, told: str = "") -> Iterator[None]:
        """SIGSTOP, and SIGCONT in the end."""
        processes = [part for victim in victims for part in self._whole(self.process(victim))]
        with self.breaking(f"SIGSTOP of {' and '.join(victims)} {told}".strip()):
            for process in processes:
                process.suspend()
            try:
                yield
            finally:
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.resume()
            if "postgres" in victims:
                eventually(self.farm.answers)

    def freeze(self, *victims: str, seconds: float, told: str = "") -> None:
        with self.freezing(*victims, told=told):
            time.sleep(seconds)

    def stop(self, victim: str) -> None:
        """SIGTERM, or what ends a server in good order; wait until it is gone."""
        process = self.process(victim)
        with self.breaking(f"a stop of {victim}"):
            process.send_signal(signal.SIGINT if victim == "postgres" else signal.SIGTERM)
            gone = (psutil.NoSuchProcess, psutil.ZombieProcess)
            with contextlib.suppress(*gone):
                process.wait(timeout=30)

    def process(self, victim: str) -> psutil.Process:
        """The process of one of VICTIMS, of ``standby``, or of a worker by its name."""
        found: list[psutil.Process] = []

        def look() -> bool:
            with contextlib.suppress(LookupError, psutil.Error):
                found.append(self._find(victim))
            return bool(found)

        eventually(look)
        return found[0]

    def valkey(self) -> redis.Redis:
        return redis.Redis.from_url(client_url(sockets.urls(self.farm.home)[1]))

    def _find(self, victim: str) -> psutil.Process:
        if victim == "worker":
            return self.crew.find(self.crew.names[0])
        if victim == "standby" or victim in self.crew.names:
            return self.crew.find(victim)
        return self.farm.find(victim)

    def _whole(self, process: psutil.Process) -> list[psutil.Process]:
        return [process, *process.children(recursive=True)]


def _ended(batch: Batch) -> bool:
    try:
        return batch.refresh().ended
    except Unavailable:
        return False  # the API itself may be broken
