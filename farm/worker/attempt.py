"""Attempts: what happens between a message and a row in outcomes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from farm import __version__
from farm.db import batches, jobs
from farm.db.database import Database
from farm.db.leases import Ending, Started
from farm.dispatch.cost import units, upscaled
from farm.errors import Cancelled, FarmError, InvalidInput, Unavailable
from farm.spec import networks
from farm.spec.batch import BatchSpec, rank
from farm.spec.infotext import infotext
from farm.spec.job import JobSpec
from farm.spec.moves import Move, judge
from farm.spec.uses import Use
from farm.worker import picture
from farm.worker.accountant import Accountant, Owner
from farm.worker.engine.stats import EngineStats, Rendered
from farm.worker.keeper import Keeper
from farm.worker.models.hashes import SHORT, SHORT_WEIGHTS
from farm.worker.models.kinds import CHECKPOINT, LORA
from farm.worker.starter import Starter
from farm.worker.writer import Writer

if TYPE_CHECKING:
    from farm.worker.engine import Engine

_log = logging.getLogger(__name__)

_RETRY = 0.5
_REFUSED = 5.0
"""Seconds after which the dispatcher has surely heard that this worker's store refuses."""

JobKey = tuple[int, int, int]
"""Batch, ord and attempt."""


class Attempts:
    """Runs attempts on the engine and sees each to its end.

    Args:
        hashes: (kind, name) of an asset to its sha256, or None while that is not known.
        profile: name of the memory profile, written into each image.
        accountant: told whose each attempt is, and what became of it.
        evidence: given when an attempt began, on the monotonic clock, and its name: the path of a
            snapshot of the device's memory if that ran out since.
    """

    def __init__(
        self,
        db: Database,
        engine: Engine,
        *,
        profile: str,
        keeper: Keeper,
        starter: Starter,
        writer: Writer,
        hashes: Callable[[str, str], str | None],
        accountant: Accountant,
        evidence: Callable[[float, str], str | None],
    ) -> None:
        self._db = db
        self._engine = engine
        self._profile = profile
        self._keeper = keeper
        self._starter = starter
        self._writer = writer
        self._hashes = hashes
        self._accountant = accountant
        self._evidence = evidence
        self._lock = threading.Lock()
        self._running: dict[JobKey, float] = {}
        self._rendered: set[JobKey] = set()
        self._all_ended = threading.Condition(self._lock)
        self._released: set[JobKey] = set()
        self._stopping = threading.Event()
        self._specification = lru_cache(maxsize=256)(self._read_specification)
        self._output = lru_cache(maxsize=256)(partial(batches.output, db))
        self.succeeded = 0

    def run(self, batch_id: int, ord: int, attempt: int) -> None:
        """Make one image, or record why there is none. Returns when Postgres has taken it."""
        job = (batch_id, ord, attempt)
        with self._lock:
            if job in self._running:
                return
            began = self._running[job] = time.monotonic()
        try:
            started = self._start(job)
            if started is None:
                _log.info("%s: stale message dropped", name(job))
                return
            ending = self._attempt(job, started)
            if snapshot := self._evidence(began, name(job)):
                stats = {**(ending.stats or {}), "memory_snapshot": snapshot}
                ending = replace(ending, stats=stats)
            self._finish(job, ending)
        finally:
            with self._lock:
                self._running.pop(job, None)
                self._released.discard(job)
                self._rendered.discard(job)
                self._all_ended.notify_all()

    def _start(self, job: JobKey) -> Started | None:
        again = False
        while True:
            try:
                return self._starter.start(job, again=again)
            except Unavailable as error:
                _log.warning("%s cannot start yet: %s", name(job), error)
            if self._stopping.wait(_RETRY):
                return None
            # The answer may be all that was lost; nobody else can have started it for us.
            again = True

    def cancel(self, job: JobKey) -> None:
        """Stop a running attempt at its next step, because its owner wants that."""
        self._engine.cancel(name(job))

    def drain(self) -> None:
        """Take no new attempts; those that run may end."""
        self._stopping.set()

    def release(self) -> None:
        """Give back what still runs, uncharged."""
        with self._lock:
            self._released |= self._running.keys()
        self._keeper.leave()
        for job in list(self._released):
            self._engine.cancel(name(job))

    @property
    def oldest(self) -> float:
        """Seconds since the first of those that are under way came; 0 where none is."""
        now = time.monotonic()
        with self._lock:
            return now - min(self._running.values(), default=now)

    def settle(self, seconds: float) -> None:
        """Start nothing more, and see the images that are done already to their rows."""
        self._stopping.set()
        with self._all_ended:
            self._all_ended.wait_for(lambda: not self._rendered, timeout=seconds)

    def _attempt(self, job: JobKey, started: Started) -> Ending:
        """The ending of an attempt, whatever happens."""
        if started.cancel_requested:
            return Ending(*job, Move.STOP)
        released = Ending(*job, Move.RELEASE, failures=started.failures)
        if self._stopping.is_set():
            return released
        if refusal := self._keeper.refusal:
            return replace(released, error={"detail": refusal}, delay=_REFUSED)
        try:
            return self._succeed(job, started)
        except Cancelled:
            return released if job in self._released else Ending(*job, Move.STOP)
        except Exception as error:
            return released if job in self._released else _failed(job, started, error)

    def _succeed(self, job: JobKey, started: Started) -> Ending:
        spec, output = self._job(job), self._output(job[0])
        self._accountant.enter(name(job), Owner(job[0], spec.checkpoint))
        rendered = self._engine.submit(name(job), spec, rank=rank(started.priority)).result()
        with self._lock:
            self._rendered.add(job)
        began = time.monotonic()
        text = infotext(spec, self._parameters(spec, rendered, job))
        row = self._keeper.keep(picture.encode(rendered.image, text, output), job)
        ended = time.monotonic()
        self._engine.timeline.add("store", "store", began, ended, job=name(job))
        stats = {
            "queue_seconds": started.queue_seconds,
            "store_seconds": ended - began,
            "checkpoint": spec.checkpoint,
            "units": units(spec),
            "remark": picture.remark(rendered.image),
            **_columns(rendered.stats),
            **_enlarged(spec, rendered.stats),
        }
        return Ending(*job, Move.SUCCEED, image=row, stats=stats)

    def _parameters(self, spec: JobSpec, rendered: Rendered, job: JobKey) -> Mapping[str, object]:
        """What beside the specification decided the pixels."""
        buckets = "/".join(map(str, rendered.stats.buckets))
        sha256 = self._hashes(CHECKPOINT, spec.checkpoint)
        return {
            "Model hash": sha256 and sha256[:SHORT],
            "Hires checkpoint": self._titled(spec.checkpoints[1:]),
            "Lora hashes": networks.hashes(_networks(spec), self._lora_hash),
            "Version": f"farm {__version__}",
            "Farm job": f"{job[0]}-{job[1]}",
            "Farm profile": self._profile,
            "Farm bucket": buckets,
            "Farm precision": rendered.stats.precision,
        }

    def _titled(self, others: Sequence[str]) -> str | None:
        """The checkpoint of a second pass, with its hash as webui writes it."""
        for name in others:
            sha256 = self._hashes(CHECKPOINT, name)
            return f"{name} [{sha256[:SHORT]}]" if sha256 else name
        return None

    def _lora_hash(self, name: str) -> str | None:
        sha256 = self._hashes(LORA, name)
        return sha256 and sha256[:SHORT_WEIGHTS]

    def _finish(self, job: JobKey, ending: Ending) -> None:
        state = self._writer.end(ending)
        self._accountant.leave(name(job), use_of(ending.move, state))
        if state is None:
            _log.warning("%s was fenced; its result is dropped", name(job))
        if state != "succeeded" and ending.image:
            self._keeper.drop(ending.image)
        if state:
            self.succeeded += state == "succeeded"

    def _job(self, job: JobKey) -> JobSpec:
        batch_id, ord, _ = job
        spec = self._specification(batch_id)
        found = spec.job(ord) if spec else jobs.specification(self._db, batch_id, ord)
        if found is None:
            raise InvalidInput(f"Job {batch_id}-{ord} has no specification.")
        return found

    def _read_specification(self, batch_id: int) -> BatchSpec | None:
        return batches.specification(self._db, batch_id)


def _networks(spec: JobSpec) -> networks.Prompt:
    """Those of all its passes."""
    asked = [each.asked for each in spec.passes]
    te, unet = ([lora for one in asked for lora in getattr(one, side)] for side in ("te", "unet"))
    return networks.Prompt("", tuple(te), tuple(unet))


def name(job: JobKey) -> str:
    """How the engine calls an attempt: ``12-3.1``."""
    return f"{job[0]}-{job[1]}.{job[2]}"


def use_of(move: Move, state: str | None) -> Use | None:
    """What an attempt's seconds count as; None: as what they were."""
    if state == "succeeded":
        return None
    if state == "waiting" and move is Move.RELEASE:
        return "preempted"
    return "cancelled" if state == "cancelled" else "failed"


def _columns(stats: EngineStats) -> dict[str, Any]:
    columns = asdict(stats)
    memory = columns.pop("memory")
    del columns["upscale_seconds"], columns["upscale_host_seconds"]  # of the few that have some
    return {
        **columns,
        "vram_active": memory["active"],
        "vram_reserved": memory["reserved"],
        "system_used": memory["system_used"],
        "system_total": memory["system_total"],
    }


def _enlarged(spec: JobSpec, stats: EngineStats) -> dict[str, Any]:
    """By which model its picture was enlarged, how much there was to do, and what it took."""
    for name, size in upscaled(spec).items():
        told = {"upscaler": name, "upscale_seconds": stats.upscale_seconds}
        if stats.upscale_host_seconds:
            # Of what the device did it is no measure, so it says not how much there was to do.
            return {**told, "upscale_host_seconds": stats.upscale_host_seconds}
        return {**told, "upscaled": size}
    return {}


def _failed(job: JobKey, started: Started, error: Exception) -> Ending:
    if isinstance(error, FarmError):
        described = error.to_dict()
        _log.warning("%s failed: %s", name(job), error)
    else:
        _log.exception("%s failed", name(job))
        described = {
            "class": "worker",
            "title": "Unexpected failure",
            "detail": f"{type(error).__name__}: {error}",
            "remedy": "Look at the worker's log; the same job may succeed on another worker.",
        }
    verdict = judge(described["class"], started.failures)
    return Ending(
        *job,
        verdict.move,
        error=described,
        failures=verdict.failures,
        delay=verdict.delay,
    )
