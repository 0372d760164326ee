"""What a batch will take, before anything of it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.db import assets, backlog, sessions
from farm.db.database import Database
from farm.db.rates import rates
from farm.dispatch.cost import Costs, units
from farm.dispatch.needs import Needs
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec

SAMPLED = 64
"""Jobs of a checkpoint whose size is looked at; the others are taken for like them."""
BYTES_A_PIXEL = 1.6
"""Of a PNG with its thumbnail, as the demo's are; photographs take more, flat art less."""
_MANY, _EACH = 500, 64


@dataclass(frozen=True)
class Part:
    """The jobs of a batch on one checkpoint.

    Attributes:
        size: units of work of all of them.
        pixels: of all their images.
    """

    checkpoint: str
    jobs: int
    size: float
    pixels: float


@dataclass(frozen=True)
class Quote:
    """What a batch will take.

    Attributes:
        jobs: images it asks for.
        loads: checkpoints that no worker holds yet.
        gpu_seconds: of all jobs, loads not counted.
        measured: whether jobs of all its checkpoints have been timed; else it is a guess.
        workers: live ones whose hosts have all its checkpoints.
        seconds: until it has ended, beside all that waits now; None without workers.
        seconds_alone: the same if it had the farm for itself.
        disk_bytes: for its images, roughly.
    """

    jobs: int
    checkpoints: Mapping[str, int]
    loads: int
    gpu_seconds: float
    measured: bool
    workers: int
    seconds: float | None
    seconds_alone: float | None
    disk_bytes: int


def parts_of(batch: BatchSpec | Sequence[JobSpec]) -> list[Part]:
    """A batch by checkpoint; nothing is expanded, a few jobs stand for the others."""
    if isinstance(batch, BatchSpec):
        return [_part(batch, first, end) for first, end in _runs(batch)]
    by_name: dict[str, list[JobSpec]] = {}
    for job in batch:
        by_name.setdefault(job.checkpoint, []).append(job)
    return [
        Part(name, len(jobs), sum(map(units, jobs)), sum(job.width * job.height for job in jobs))
        for name, jobs in by_name.items()
    ]


def finish_seconds(work: float, others: Sequence[tuple[float, float]], devices: int) -> float:
    """When ``work`` is done that shares ``devices`` evenly, by weight, with others.

    Args:
        work: GPU-seconds of one user of weight 1.
        others: (weight, GPU-seconds) of everybody else who has work.
        devices: how many work at once.
    """
    left, now = work, 0.0
    waiting = sorted((size / weight, weight) for weight, size in others if size > 0)
    total = 1.0 + sum(weight for _, weight in waiting)
    had = 0.0  # GPU-seconds that each has had, a unit of weight
    for share, weight in waiting:
        if left <= share - had:
            break
        now += (share - had) * total / devices
        left -= share - had
        had, total = share, total - weight
    return now + left * total / devices


def quote(db: Database, user_id: int, batch: BatchSpec | Sequence[JobSpec]) -> Quote:
    """What ``batch`` of a user will take at today's load."""
    parts = parts_of(batch)
    known, costs = rates(db), Costs()
    for checkpoint, rate in known.items():
        costs.learn(checkpoint, 1.0, rate)
    work = sum(costs.estimate(part.checkpoint, part.size) for part in parts)
    names = {part.checkpoint for part in parts}
    live = [session for session in sessions.live(db) if session.state == "live"]
    loadable = assets.loadable(db)
    able = [s for s in live if s.host not in loadable or names <= loadable[s.host]]
    held = {name for session in able for name in session.resident}
    waiting = _waiting(db, costs)
    own = work + waiting.pop(user_id, 0.0)
    weights = {user.user_id: user.weight for user in backlog.entitled(db, list(waiting))}
    others = [(weights.get(user, 1.0), size) for user, size in waiting.items()]
    return Quote(
        jobs=sum(part.jobs for part in parts),
        checkpoints={part.checkpoint: part.jobs for part in parts},
        loads=len(names - held),
        gpu_seconds=work,
        measured=names <= set(known),
        workers=len(able),
        seconds=finish_seconds(own, others, len(able)) if able else None,
        seconds_alone=work / len(able) if able else None,
        disk_bytes=int(BYTES_A_PIXEL * sum(part.pixels for part in parts)),
    )


def _waiting(db: Database, costs: Costs) -> dict[int, float]:
    """GPU-seconds that wait, by user."""
    needs, found = Needs(db), dict[int, float]()
    for batch in backlog.open_batches(db, least=0, each=_EACH, limit=_MANY):
        need = needs.of(batch.id, batch.cursor)
        cost = costs.estimate(need.checkpoint, need.size) * (batch.total - batch.cursor)
        found[batch.user_id] = found.get(batch.user_id, 0.0) + cost
    return found


def _runs(batch: BatchSpec) -> list[tuple[int, int]]:
    """First and end of the jobs on each checkpoint."""
    runs, first = [], 0
    while first < batch.total:
        _, end = batch.checkpoint_run(first)
        runs.append((first, end))
        first = end
    return runs


def _part(batch: BatchSpec, first: int, end: int) -> Part:
    jobs = end - first
    # Every so many, and no round number, so that no axis is looked at in one place only.
    step = max(1, jobs // SAMPLED) | 1
    looked = [batch.job(ord) for ord in range(first, end, step)]
    scale = jobs / len(looked)
    return Part(
        checkpoint=looked[0].checkpoint,
        jobs=jobs,
        size=scale * sum(map(units, looked)),
        pixels=scale * sum(job.width * job.height for job in looked),
    )
