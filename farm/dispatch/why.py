"""Why a job is where it is, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.db.reasons import Facts
from farm.dispatch.forecast import Work
from farm.dispatch.reach import Reach
from farm.spec.batch import rank

GIB = 2**30


@dataclass(frozen=True)
class Why:
    """``reason`` in one or two sentences, and what to do about it, if anything can be done."""

    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class Place:
    """A job, and where it is.

    Attributes:
        state: see :mod:`farm.spec.moves`.
        worker: that has it.
        before: seconds of work that go before it, where that is known.
    """

    batch_id: int
    state: str
    worker: str | None = None
    before: float | None = None


def before(works: Sequence[Work], batch_id: int) -> float | None:
    """Seconds of work of higher classes, and of its user's batches, that go before a batch; None if
    nothing of it is left."""
    own = next((work for work in works if work.batch_id == batch_id), None)
    if own is None:
        return None
    return sum(work.seconds for work in works if _precedes(work, own))


def explain(place: Place, facts: Facts, reach: Reach) -> Why:
    """Say why a job is where it is."""
    if place.state == "running":
        return Why(f"{place.worker} is making it.")
    if place.state == "assigned":
        return _assigned(place, facts, reach)
    if place.state == "waiting" and facts.retry_reason is not None:
        return _blocked(place, facts, reach) or _waiting(facts)
    if place.state in ("waiting", "pending"):
        return _blocked(place, facts, reach) or _pending(place, facts, reach)
    return Why(f"It has ended: {place.state}.")


def _assigned(place: Place, facts: Facts, reach: Reach) -> Why:
    told = f"It is with {place.worker}"
    if facts.queued:
        told += f", which holds {_jobs(facts.queued)} from before it"
    if place.worker not in reach.holding:
        told += f"; {facts.checkpoint} is loading there, or will be"
    return Why(f"{told}.")


def _waiting(facts: Facts) -> Why:
    """It is to be tried again."""
    due = max(0.0, facts.retry_seconds or 0.0)
    when = f"It is tried again in {due:.0f} s" if due >= 1 else "It is about to be tried again"
    return Why(f"{when}: {facts.retry_reason}".rstrip(".") + ".")


def _blocked(place: Place, facts: Facts, reach: Reach) -> Why | None:
    """Why it cannot run as things are, whoever else waits."""
    if facts.batch_state == "paused":
        return Why(f"Batch {place.batch_id} is paused.", f"farm resume {place.batch_id}")
    if not facts.workers:
        return _nobody(facts)
    if not reach.having:
        named, several = " and ".join(map(repr, reach.checkpoints)), len(reach.checkpoints) > 1
        return Why(
            f"No host with a live worker has the checkpoint{'s' * several} {named}.",
            "Put what is missing into a model folder there; `farm model ls` shows what there is.",
        )
    if not reach.tagged:
        return _untagged(facts, reach)
    if not reach.fitting:
        return _unfit(reach)
    if facts.cap is not None and facts.in_flight >= facts.cap:
        return Why(
            f"{facts.user} has {_jobs(facts.in_flight)} in flight, and may have {facts.cap}.",
            f"An administrator may change that: farm share {facts.user} --cap N",
        )
    return None


def _nobody(facts: Facts) -> Why:
    if facts.refusing:
        return Why(
            f"No worker can begin a job: {'; '.join(facts.refusing)}",
            "They try again all the time, and go on by themselves.",
        )
    if facts.away:
        return Why(
            f"Every worker is in quarantine: {'; '.join(facts.away)}",
            "They are tested and come back; `farm workers resume NAME` lets one back at once.",
        )
    return Why("No worker is alive.", "Start one with `farm worker`, or all with `farm up`.")


def _untagged(facts: Facts, reach: Reach) -> Why:
    wanted = " and ".join(facts.tags)
    missing = [tag for tag in facts.tags if tag not in reach.tags] or facts.tags
    signs = " ".join(f"+{tag}" for tag in missing)
    return Why(
        f"No live worker that has {facts.checkpoint!r} is tagged {wanted}.",
        f"Tag one, such as: farm workers tag {reach.having[0]} {signs}",
    )


def _unfit(reach: Reach) -> Why:
    peak = f" takes {reach.peak / GIB:.1f} GiB and" if reach.peak else ""
    most = f", the largest of which has {reach.room / GIB:.1f} GiB" if reach.room else ""
    if reach.nearest is None:
        remedy = "Use a smaller checkpoint, or a card with more memory."
    else:
        remedy = f"The nearest size that fits is {reach.nearest[0]}x{reach.nearest[1]}."
    return Why(f"It{peak} fits on none of {', '.join(reach.tagged)}{most}.", remedy)


def _pending(place: Place, facts: Facts, reach: Reach) -> Why:
    first = facts.before_in_batch or facts.before_of_user or facts.higher
    if reach.free and not first:
        if reach.holding or not facts.others:
            return Why("A place is free; it is about to be placed.")
        return Why(
            f"No worker holds {facts.checkpoint}: it is loaded as soon as a card that has nothing "
            "warm to do takes it, or when it has been passed over for long enough."
        )
    return Why(_behind(place, facts, reach))


def _behind(place: Place, facts: Facts, reach: Reach) -> str:
    """Who goes first."""
    first = [
        f"{_jobs(count)} {whose}"
        for count, whose in (
            (facts.higher, "of a higher class"),
            (facts.before_of_user, f"of {facts.user}'s other batches"),
            (facts.before_in_batch, "of its own batch"),
        )
        if count
    ]
    places = f"All places of {', '.join(reach.fitting)} are taken"
    told = [places if not reach.free else "Places are being filled"]
    if first:
        went = f"{' and '.join(first)} go before it"
        seconds = f", about {place.before:.0f} GPU-seconds" if place.before else ""
        told.append(went + seconds)
    if facts.others:
        people = "another user" if facts.others == 1 else f"{facts.others} other users"
        told.append(f"{people} take turns with {facts.user}")
    return "; ".join(told) + "."


def _precedes(work: Work, own: Work) -> bool:
    if work.batch_id == own.batch_id:
        return False
    if work.user == own.user:
        return (-work.priority, work.batch_id) < (-own.priority, own.batch_id)
    return rank(work.priority) > rank(own.priority)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
