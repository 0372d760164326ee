"""The books after a fault: what must be true of every job, file and attempt, whatever broke."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from farm.db.database import Database
from farm.storage import ImageStore

_FILE = re.compile(r"batches/(\d+)/(\d+)-(\d+)\.(?:png|thumb\.webp)")
_WASTED = ("lost", "release", "retry")
_LATER = datetime.max.replace(tzinfo=UTC)

_JOBS = """
SELECT b.id, b.state, b.total, count(o.ord) AS outcomes,
       count(*) FILTER (WHERE o.state = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE o.state = 'failed' AND o.error IS NOT NULL) AS failed,
       count(*) FILTER (WHERE o.state = 'cancelled') AS cancelled,
       (SELECT sum(p.succeeded) FROM batch_progress p WHERE p.batch_id = b.id) AS told
FROM batches b LEFT JOIN outcomes o ON o.batch_id = b.id
GROUP BY b.id ORDER BY b.id
"""

_WON = """
SELECT coalesce(i.batch_id, o.batch_id) AS batch_id, coalesce(i.ord, o.ord) AS ord,
       i.attempt, i.path, i.thumb_path, encode(i.sha256, 'hex') AS sha256,
       i.attempt IS NOT DISTINCT FROM o.attempt AND t.result = 'succeeded' AS one
FROM images i
FULL JOIN (SELECT * FROM outcomes WHERE state = 'succeeded') o
       ON o.batch_id = i.batch_id AND o.ord = i.ord
LEFT JOIN attempts t ON t.batch_id = i.batch_id AND t.ord = i.ord AND t.attempt = i.attempt
"""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Fault:
    """Something that is broken for a while, by this machine's clock, which is Postgres's too::

    with Fault("worker killed") as fault:
        farm.kill("worker")
    """

    name: str
    began: datetime = field(default_factory=_now)
    ended: datetime = _LATER

    def __enter__(self) -> Fault:
        self.began = _now()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = _now()

    def hit(self, attempt: dict[str, Any]) -> bool:
        """Whether the attempt was in flight while this was broken."""
        return bool(self.began <= attempt["ended_at"] and attempt["assigned_at"] <= self.ended)


@dataclass
class Ledger:
    """What a run came to."""

    jobs: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    attempts: int = 0
    orphans: list[str] = field(default_factory=list)
    wasted: Counter[str] = field(default_factory=Counter)
    wasted_seconds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.jobs} jobs: {self.succeeded} succeeded, {self.failed} failed, "
            f"{self.cancelled} cancelled; {self.attempts} attempts, of which "
            f"{self.wasted.total()} were wasted; {len(self.orphans)} files wait to be swept"
        ]
        lines += [
            f"  {name:34} {count:5} attempts, {self.wasted_seconds[name]:8.1f} s in flight"
            for name, count in sorted(self.wasted.items())
        ]
        return "\n".join(lines)


def check(db: Database, store: ImageStore, faults: Sequence[Fault] = ()) -> Ledger:
    """Make sure of every rule, for every batch there is. None of them may be under way.

    - A job has one image, or one recorded failure or cancel; counters agree.
    - An image's files are there, and have the recorded content.
    - A file no row names is what an attempt left that did not win: it waits to be swept.
    - Nothing is leased and nothing waits.
    - An attempt was wasted only because something broke while it was in flight, and what broke
      wasted no more than one attempt of any job.
    """
    ledger = Ledger()
    _check_jobs(db, ledger)
    named = _check_images(db, store, ledger)
    _check_leftovers(db)
    tried = db.all("SELECT * FROM attempts")
    ledger.attempts = len(tried)
    _check_orphans(store, named, tried, ledger)
    _charge(tried, faults, ledger)
    return ledger


def _check_jobs(db: Database, ledger: Ledger) -> None:
    for batch in db.all(_JOBS):
        ended = batch["succeeded"] + batch["failed"] + batch["cancelled"]
        assert batch["outcomes"] == ended, f"a failure without its reason: {batch}"
        assert (batch["told"] or 0) == batch["succeeded"], f"counters disagree: {batch}"
        if batch["state"] == "cancelled":  # the others never began, and have no row
            batch["cancelled"] = batch["total"] - batch["succeeded"] - batch["failed"]
        else:
            assert ended == batch["total"], f"jobs without an outcome: {batch}"
        ledger.jobs += batch["total"]
        for state in ("succeeded", "failed", "cancelled"):
            setattr(ledger, state, getattr(ledger, state) + batch[state])


def _check_images(db: Database, store: ImageStore, ledger: Ledger) -> set[str]:
    """The paths of all files that rows name."""
    won = db.all(_WON)
    assert len(won) == ledger.succeeded
    for image in won:
        assert image["one"], f"outcome, image and attempt disagree: {image}"
        data = store.get(image["path"])
        assert hashlib.sha256(data).hexdigest() == image["sha256"], image
        assert store.size(image["thumb_path"]) > 0, image
    return {image[column] for image in won for column in ("path", "thumb_path")}


def _check_leftovers(db: Database) -> None:
    assert db.all("SELECT * FROM leases") == []
    assert db.all("SELECT * FROM requeue") == []


def _check_orphans(
    store: ImageStore, named: set[str], tried: Sequence[dict[str, Any]], ledger: Ledger
) -> None:
    stored = {path for path in store.paths() if not path.startswith("traces/")}
    assert named <= stored
    in_vain = {(a["batch_id"], a["ord"], a["attempt"]) for a in tried if a["result"] in _WASTED}
    in_vain |= {
        (a["batch_id"], a["ord"], a["attempt"]) for a in tried if a["result"] == "cancelled"
    }
    for path in sorted(stored - named):
        match = _FILE.fullmatch(path)
        assert match, f"nobody knows what {path} is"
        job = (int(match[1]), int(match[2]), int(match[3]))
        assert job in in_vain, f"{path}: no attempt that failed to win left it"
        ledger.orphans.append(path)


def _charge(tried: Sequence[dict[str, Any]], faults: Sequence[Fault], ledger: Ledger) -> None:
    """Find for each wasted attempt the fault that did it; each pays once for a job."""
    paid: set[tuple[int, int, int]] = set()
    wasted = (
        attempt
        for attempt in tried
        # A worker that gives a job back with a reason has not begun it.
        if attempt["result"] in _WASTED
        and not (attempt["result"] == "release" and attempt["error"])
    )
    for attempt in sorted(wasted, key=lambda attempt: attempt["ended_at"]):
        job = (attempt["batch_id"], attempt["ord"])
        guilty = [
            (attempt["worker"] not in fault.name, fault.ended, number)
            for number, fault in enumerate(faults)
            if fault.hit(attempt) and (*job, number) not in paid
        ]
        assert guilty, f"an attempt was wasted for nothing: {attempt}"
        *_, number = min(guilty)  # the others may have to pay for a later one
        paid.add((*job, number))
        name = faults[number].name
        ledger.wasted[name] += 1
        seconds = (attempt["ended_at"] - attempt["assigned_at"]).total_seconds()
        ledger.wasted_seconds[name] += seconds
