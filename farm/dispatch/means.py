"""What the farm could ever make: by all workers that it knows, busy, in quarantine or away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from time import monotonic
from typing import NamedTuple

from farm.db import assets, cards, stock
from farm.db.cards import Card
from farm.db.database import Database
from farm.db.stock import Stock
from farm.dispatch.fit import Fit, fit, nearest
from farm.errors import DoesNotFit, FarmError, InvalidInput
from farm.spec.hires import UPSCALERS
from farm.spec.job import Models

GIB = 2**30
FRESH = 2.0
_LATER = "If a worker that can is to come, say so: wait_for_worker, or --wait-for-worker."


class Shape(NamedTuple):
    """What decides which workers can make a job."""

    checkpoint: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True)
class Makers:
    """The workers that could make jobs of a checkpoint in a batch with some tags.

    Attributes:
        having: those whose hosts have it, or do not say what they have.
        tagged: of these, those that have the tags.
        fits: what it takes of each of those, None of one that does not say.
    """

    having: Sequence[Card]
    tagged: Sequence[Card]
    fits: Sequence[Fit | None]

    @cached_property
    def most(self) -> float:
        """Pixels of the largest image that one of them could make; 0 where none can."""
        return max((one.most if one else inf for one in self.fits), default=0)


class Means:
    """What a farm of these workers could make of batches that ask for these tags.

    Args:
        there: what their hosts have.
    """

    def __init__(
        self,
        known: Sequence[Card],
        there: Stock,
        sizes: Mapping[str, assets.Size],
        *,
        tags: Sequence[str],
    ) -> None:
        self.known = known
        self._there = there
        self._sizes = sizes
        self._tags = frozenset(tags)
        self._makers: dict[str, Makers] = {}

    def most(self, checkpoint: str) -> float:
        """Pixels of the largest image of a checkpoint that some worker could make; 0 for none."""
        return self._of(checkpoint).most

    def without(
        self, upscalers: Iterable[str], models: Iterable[Models], where: Callable[[str], str]
    ) -> FarmError | None:
        """What to answer who needs an upscaler that no worker's host has, or none beside the
        checkpoints of the same job; one that does not say has all.

        Args:
            upscalers: all of them.
            models: that one worker must have, in each way there is.
            where: the field that names one of the upscalers.
        """
        for name in upscalers:
            if not any(self._there.has(card.host, (), [name]) for card in self.known):
                return self._no_upscaler(name, where(name))
        for needed in models:
            having = [card for card in self.known if self._there.has(card.host, needed.checkpoints)]
            if having and not any(self._there.has(card.host, *needed) for card in having):
                return self._apart(needed, having, where)
        return None

    def _no_upscaler(self, name: str, where: str) -> FarmError:
        there = sorted(
            {one for card in self.known for one in self._there.upscalers.get(card.host, ())}
        )
        models = f", or a model: {', '.join(there)}" if there else ""
        return InvalidInput(
            f"{where}: there is no upscaler {name!r}.",
            field=where,
            value=name,
            remedy=f"Choose one of {', '.join(UPSCALERS)}{models}. Models go into the ESRGAN "
            f"folder of {names(self.known)}. {_LATER}",
        )

    def _apart(
        self, needed: Models, having: Sequence[Card], where: Callable[[str], str]
    ) -> FarmError:
        first = min(needed.upscalers)
        wanted = " and ".join(map(repr, [*sorted(needed.checkpoints), *sorted(needed.upscalers)]))
        return InvalidInput(
            f"{where(first)}: no worker's host has {wanted}, which one job needs.",
            field=where(first),
            value=first,
            remedy=f"Put {first!r} into the ESRGAN folder of {names(having)}. {_LATER}",
        )

    def obstacle(self, shape: Shape, where: Callable[[str], str], concerned: str = "") -> FarmError:
        """Why no worker could make jobs of that shape, and the nearest change with which one could.

        Args:
            where: the name of a field in the request.
            concerned: which jobs have that shape, as a sentence.
        """
        makers = self._of(shape.checkpoint)
        if not makers.having:
            error = self._unheld(shape.checkpoint, where("checkpoint"))
        elif not makers.tagged:
            error = self._untagged(shape.checkpoint, makers.having)
        else:
            error = _unfit(shape, makers, where)
        return type(error)(
            f"{error.message} {concerned}".rstrip(),
            field=error.field,
            value=error.value,
            remedy=f"{error.remedy} {_LATER}",
        )

    def _of(self, checkpoint: str) -> Makers:
        if checkpoint not in self._makers:
            size = self._sizes.get(checkpoint)
            having = [card for card in self.known if self._there.has(card.host, [checkpoint])]
            tagged = [card for card in having if self._tags <= card.tags]
            fits = [fit(card.fits, size) if size else None for card in tagged]
            self._makers[checkpoint] = Makers(having, tagged, fits)
        return self._makers[checkpoint]

    def _unheld(self, checkpoint: str, where: str) -> FarmError:
        where_to = names(self.known)
        return InvalidInput(
            f"{where}: no host that has {checkpoint!r} has a worker.",
            field=where,
            value=checkpoint,
            remedy=f"Put it into a model folder of {where_to}, or use another.",
        )

    def _untagged(self, checkpoint: str, having: Sequence[Card]) -> FarmError:
        best = max(having, key=lambda card: len(self._tags & card.tags))
        missing = sorted(self._tags - best.tags)
        signs = " ".join(f"+{tag}" for tag in missing)
        return InvalidInput(
            f"tags: no worker that can read {checkpoint!r} is tagged "
            f"{' and '.join(sorted(self._tags))}.",
            field="tags",
            value=sorted(self._tags),
            remedy=f"Leave out {', '.join(missing)}, or tag a worker, such as: "
            f"farm workers tag {best.worker} {signs}.",
        )


def look(db: Database, tags: Sequence[str], *, away: bool) -> Means:
    """What the farm could make now; by all workers that it has seen, those ``away`` included."""
    known = cards.seen(db) if away else cards.live(db)
    return Means(known, stock.stock(db), assets.sizes(db), tags=tags)


class Glance:
    """What live workers could make, as it was at most :data:`FRESH` seconds ago: enough to accept a
    batch, and not to refuse one. Safe with threads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._looked = -inf
        self._means: dict[frozenset[str], Means] = {}

    def means(self, tags: Sequence[str]) -> Means:
        """Of batches that ask for these tags."""
        if monotonic() - self._looked > FRESH:
            self._means, self._looked = {}, monotonic()
        known, wanted = self._means, frozenset(tags)
        if wanted not in known:
            known[wanted] = look(self._db, tags, away=False)
        return known[wanted]


def _unfit(shape: Shape, makers: Makers, where: Callable[[str], str]) -> FarmError:
    card, best = max(
        ((card, found) for card, found in zip(makers.tagged, makers.fits, strict=True) if found),
        key=lambda pair: pair[1].most,
    )
    takes, room = best.peak(shape.pixels) / GIB, best.memory / GIB
    other = nearest(shape.width, shape.height, best.most)
    side = next((name for name in ("width", "height") if "axes" in where(name)), "width")
    field = where(side if other else "checkpoint")
    value = f"{shape.width}x{shape.height}" if other else shape.checkpoint
    remedy = (
        f"The nearest size that fits is {other[0]}x{other[1]}."
        if other
        else f"No image of {shape.checkpoint} fits: use a smaller checkpoint, or a larger card."
    )
    return DoesNotFit(
        f"{field}: {shape.width}x{shape.height} on {shape.checkpoint!r} takes {takes:.1f} GiB, and "
        f"{card.worker}, the largest of the workers that could make it, has {room:.1f} GiB.",
        field=field,
        value=value,
        remedy=remedy,
    )


def names(known: Sequence[Card]) -> str:
    """Of workers, the first few."""
    shown = sorted({card.worker for card in known})
    return " or ".join(shown) if len(shown) < 4 else f"one of {', '.join(shown[:8])}"
