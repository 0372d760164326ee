"""Why a job is where it is, in words."""

from __future__ import annotations

from dataclasses import dataclass

from farm.db.reasons import Facts


@dataclass(frozen=True)
class Why:
    """``reason`` in one or two sentences, and what to do about it, if anything can be done."""

    reason: str
    remedy: str | None = None


def explain(batch_id: int, state: str, worker: str | None, facts: Facts) -> Why:
    """Say why a job is in ``state``, see :mod:`farm.spec.moves`."""
    if state == "running":
        return Why(f"{worker} is making it.")
    if state == "assigned":
        before = f", which holds {_jobs(facts.queued)} from before it" if facts.queued else ""
        return Why(f"It is with {worker}{before}; a checkpoint may be loading.")
    if state == "waiting":
        return _waiting(facts)
    if state == "pending":
        return _pending(batch_id, facts)
    return Why(f"It has ended: {state}.")


def _waiting(facts: Facts) -> Why:
    """It is to be tried again."""
    due = max(0.0, facts.retry_seconds or 0.0)
    when = f"It is tried again in {due:.0f} s" if due >= 1 else "It is about to be tried again"
    return Why(f"{when}: {facts.retry_reason}".rstrip(".") + ".")


def _pending(batch_id: int, facts: Facts) -> Why:
    if facts.batch_state == "paused":
        return Why(f"Batch {batch_id} is paused.", f"farm resume {batch_id}")
    if not facts.workers and facts.refusing:
        return Why(
            f"No worker can begin a job: {'; '.join(facts.refusing)}",
            "They try again all the time, and go on by themselves.",
        )
    if not facts.workers and facts.away:
        return Why(
            f"Every worker is in quarantine: {'; '.join(facts.away)}",
            "They are tested and come back; `farm workers resume NAME` lets one back at once.",
        )
    if not facts.workers:
        return Why("No worker is alive.", "Start one with `farm worker`, or all with `farm up`.")
    if not facts.able:
        return Why(
            f"No host with a live worker has the checkpoint {facts.checkpoint!r}.",
            "Put it into a model folder there; `farm model ls` shows what there is.",
        )
    if facts.cap is not None and facts.in_flight >= facts.cap:
        return Why(
            f"{facts.user} has {_jobs(facts.in_flight)} in flight, and may have {facts.cap}.",
            f"An administrator may change that: farm share {facts.user} --cap N",
        )
    if facts.free and not facts.before_in_batch and not facts.before_of_user and not facts.higher:
        return Why("A place is free; it is about to be placed.")
    return Why(_behind(facts))


def _behind(facts: Facts) -> str:
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
    places = f"All places of {', '.join(facts.able)} are taken"
    told = [places if not facts.free else "Places are being filled"]
    if first:
        told.append(f"{' and '.join(first)} go before it")
    if facts.others:
        people = "another user" if facts.others == 1 else f"{facts.others} other users"
        told.append(f"{people} take turns with {facts.user}")
    return "; ".join(told) + "."


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
