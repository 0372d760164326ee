"""What a batch will take, before anything of it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.db import assets, sessions, users
from farm.db.database import Database
from farm.dispatch.fit import Fit, fit, nearest
from farm.dispatch.forecast import NEW, Eta, Work, alone
from farm.dispatch.outlook import Asked, Outlook, Picture, asked_of, cards, slowest_load, work_of
from farm.dispatch.parts import Part, parts_of, shapes_of
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec, Models
from farm.spec.output import PNG, Output
from farm.spec.sheet import sheet_size

BYTES_A_PIXEL = {
    ("png", True): 1.6,
    ("webp", True): 1.2,
    ("webp", False): 0.3,
    ("jpeg", False): 0.4,
    ("avif", False): 0.3,
}
"""Of an image with its thumbnail, by format and whether each pixel is kept, as the demo's are;
photographs take more of what keeps them, larger images less."""


@dataclass(frozen=True)
class ShapeQuote:
    """The jobs of a batch on one checkpoint that have one size.

    Attributes:
        fits: whether a live worker can make them; None where no worker says.
        vram_bytes: that one such image takes of the card where it takes least, at its peak.
        remedy: the nearest change that fits.
    """

    checkpoint: str
    width: int
    height: int
    jobs: int
    fits: bool | None
    vram_bytes: int | None
    remedy: str | None


@dataclass(frozen=True)
class Quote:
    """What a batch will take.

    Attributes:
        jobs: images it asks for.
        checkpoints: jobs on each; one that needs two counts twice.
        loads: checkpoints that no worker holds yet.
        gpu_seconds: of all jobs, loads not counted, on the first card the farm has known.
        measured: whether jobs of all its checkpoints have been timed, and its upscalers; else it
            is a guess.
        workers: live ones with its tags whose hosts have what some of its jobs need.
        eta: seconds until it has ended, beside all that waits now; None where some of its jobs have
            no worker.
        seconds_alone: the same if it had the farm for itself.
        shapes: what fits and what does not, the most jobs first.
        unfit: jobs that fit no live worker.
        sheet: width and height of its contact sheet in pixels.
        disk_bytes: for its images, roughly.
    """

    jobs: int
    checkpoints: Mapping[str, int]
    loads: int
    gpu_seconds: float
    measured: bool
    workers: int
    eta: Eta | None
    seconds_alone: float | None
    shapes: Sequence[ShapeQuote]
    unfit: int
    sheet: tuple[int, int]
    disk_bytes: int


def quote(
    db: Database,
    outlook: Outlook,
    user: users.User,
    batch: BatchSpec | Sequence[JobSpec],
    *,
    priority: int,
    tags: Sequence[str] = (),
    output: Output = PNG,
) -> Quote:
    """What ``batch`` of a user, for workers with all these tags, will take at today's load."""
    parts = parts_of(batch)
    names: dict[str, int] = {}
    for part in parts:
        for name in part.checkpoints:
            names[name] = names.get(name, 0) + part.jobs
    picture = outlook.now(names.keys())
    jobs = sum(part.jobs for part in parts)
    asked = asked_of(parts, tags)
    eta, by_itself = _times(picture, parts, asked, user=user.id, priority=priority)
    shapes = _shapes(db, picture, batch, tags)
    return Quote(
        jobs=jobs,
        checkpoints=names,
        loads=len(set(names) - picture.held),
        gpu_seconds=work_of(parts, picture.costs),
        measured=set(names) <= picture.measured
        and all(picture.costs.knows(name) for part in parts for name in part.upscales),
        workers=len(picture.able(asked)),
        eta=eta,
        seconds_alone=by_itself,
        shapes=shapes,
        unfit=sum(shape.jobs for shape in shapes if shape.fits is False),
        sheet=_sheet(batch, [(shape.width, shape.height) for shape in shapes]),
        disk_bytes=_disk_bytes(parts, output),
    )


def _disk_bytes(parts: Sequence[Part], output: Output) -> int:
    each = BYTES_A_PIXEL[output.format, output.lossless]
    return int(each * sum(part.pixels * part.jobs for part in parts))


def _times(
    picture: Picture, parts: Sequence[Part], asked: Asked, *, user: int, priority: int
) -> tuple[Eta | None, float | None]:
    """When it ends beside all else, and with the farm for itself."""
    if not picture.can_end(asked):
        return None, None
    seconds = work_of(parts, picture.costs, picture.held)
    jobs, load = sum(part.jobs for part in parts), slowest_load(parts, picture.costs)
    work = Work(NEW, user, priority, seconds, jobs, load)
    least = alone(work, cards(picture.able(asked), picture.costs))
    model = max(picture.with_new(work), least)
    return picture.record.eta(model), least


def _shapes(
    db: Database, picture: Picture, batch: BatchSpec | Sequence[JobSpec], tags: Sequence[str]
) -> list[ShapeQuote]:
    sizes, told = assets.sizes(db), sessions.fits(db)
    shapes = shapes_of(batch)
    known = {
        name: [
            fit(told.get(session.id, {}), sizes[name]) if name in sizes else None
            for session in picture.able(_having(name, tags))
        ]
        for name in {shape[0] for shape in shapes}
    }
    return [_shape(picture, known[shape[0]], shape, jobs) for shape, jobs in shapes.most_common()]


def _having(checkpoint: str, tags: Sequence[str]) -> Asked:
    return Asked(frozenset([Models(frozenset([checkpoint]), frozenset())]), frozenset(tags))


def _shape(
    picture: Picture, fits: Sequence[Fit | None], shape: tuple[str, int, int], jobs: int
) -> ShapeQuote:
    """Whether jobs of a shape fit, and what would if they do not.

    Args:
        fits: of the workers that have the checkpoint, where they say.
    """
    name, *size = shape
    pixels = size[0] * size[1]
    known = [each for each in fits if each]
    fitting = [each for each in known if pixels <= each.most]
    vram = min((each.peak(pixels) for each in fitting or known), default=None)
    if picture.live and not fits:
        remedy = f"Give a live worker {name}, and the tags that the batch asks for."
        return ShapeQuote(*shape, jobs, False, None, remedy)
    if fitting or len(known) < len(fits) or not known:
        return ShapeQuote(*shape, jobs, True if fitting else None, vram, None)
    other = nearest(size[0], size[1], max(each.most for each in known))
    remedy = (
        f"The nearest size that fits is {other[0]}x{other[1]}."
        if other
        else "Use a smaller checkpoint or a card with more memory."
    )
    return ShapeQuote(*shape, jobs, False, vram, remedy)


def _sheet(
    batch: BatchSpec | Sequence[JobSpec], sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    if isinstance(batch, BatchSpec):
        return sheet_size(batch.axes, batch.count, batch.total, sizes)
    return sheet_size((), 1, len(batch), sizes)
