"""Which workers could make a job, and why the others could not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.db import assets, sessions, stock
from farm.db.database import Database
from farm.db.sessions import Session
from farm.dispatch.fit import Fit, fit, nearest
from farm.spec.job import JobSpec


@dataclass(frozen=True)
class Reach:
    """Names of the live workers that take jobs, sieved by what a job needs, and what would help.

    Attributes:
        checkpoints: that it needs.
        having: those whose host has them.
        tagged: of these, those that have the batch's tags.
        fitting: of these, those that the job fits, or that do not say.
        holding: of these, those that have the checkpoint in memory.
        free: places that are free on the fitting ones.
        tags: that some live worker has, of those asked for.
        peak: bytes that the job takes at the least, where that is known.
        room: bytes of the largest of the tagged cards.
        nearest: width and height nearest to the job's that fit one of them.
    """

    checkpoints: tuple[str, ...] = ()
    having: tuple[str, ...] = ()
    tagged: tuple[str, ...] = ()
    fitting: tuple[str, ...] = ()
    holding: tuple[str, ...] = ()
    free: int = 0
    tags: frozenset[str] = frozenset()
    peak: int | None = None
    room: int | None = None
    nearest: tuple[int, int] | None = None


def reach(db: Database, spec: JobSpec, tags: Sequence[str]) -> Reach:
    """Which workers could make a job of a batch with these tags."""
    live = [session for session in sessions.live(db) if session.takes_jobs]
    there, sizes, largest = stock.stock(db), assets.sizes(db), spec.largest
    having = [session for session in live if there.has(session.host, *spec.models)]
    tagged = [session for session in having if set(tags) <= set(session.tags)]
    told = sessions.fits(db)
    # By the checkpoint of the largest picture there is something to say of how it does not fit.
    most = max(largest, key=lambda name: largest[name])
    pixels = largest[most]
    fits = {
        s.id: {name: fit(told.get(s.id, {}), sizes[name]) for name in largest if name in sizes}
        for s in tagged
    }
    fitting = [s for s in tagged if all(_fits(fits[s.id].get(n), largest[n]) for n in largest)]
    known = [each for found in fits.values() if (each := found.get(most))]
    return Reach(
        checkpoints=(*spec.checkpoints, *spec.upscalers),
        having=_names(having),
        tagged=_names(tagged),
        fitting=_names(fitting),
        holding=_names([each for each in fitting if spec.checkpoint in each.resident]),
        free=sum(max(0, s.capacity - s.running - s.assigned) for s in fitting),
        tags=frozenset(tags) & {tag for session in live for tag in session.tags},
        peak=min((each.peak(pixels) for each in known), default=None),
        room=max((each.memory for each in known), default=None),
        nearest=nearest(*spec.size, max((each.most for each in known), default=0)),
    )


def _fits(found: Fit | None, pixels: int) -> bool:
    return found is None or pixels <= found.most


def _names(found: Sequence[Session]) -> tuple[str, ...]:
    return tuple(session.worker for session in found)
