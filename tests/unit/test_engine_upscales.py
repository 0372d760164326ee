"""Models that enlarge pictures, among jobs of others: read aside, in turns, without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from farm.errors import Cancelled, DoesNotFit, Unavailable, UpscalerError
from farm.spec.job import JobSpec
from farm.spec.measurement import Call
from farm.worker import attempt
from farm.worker.engine.job import Job
from farm.worker.engine.readings import PATIENCE, Readings
from farm.worker.engine.upscales import LEAST_TILE, TILE
from farm.worker.models.calls import name_of
from tests.engine_bench import Bench
from tests.fake_models import FakeCheckpoint, Gate, spec


class FakeUpscaler:
    """Repeats each pixel, and asks ``fault`` before."""

    scale = 2

    def __init__(self, fault: Callable[[str, Tensor], None], name: str) -> None:
        self.fault, self.name = fault, name
        self.dtypes: list[torch.dtype] = []

    def precision(self, wanted: torch.dtype) -> torch.dtype:
        return wanted

    def bytes_in(self, dtype: torch.dtype) -> int:
        return 100 * dtype.itemsize

    def call(self, dtype: torch.dtype) -> Call:
        return Call("decode", "fake", 100, name_of(dtype), "enlarge x2", pixels=0, rows=1)

    def placed(self, dtype: torch.dtype, device: torch.device) -> Placed:
        self.dtypes.append(dtype)
        return Placed(self, dtype)


@dataclass(eq=False)
class Placed:
    of: FakeUpscaler
    dtype: torch.dtype
    bytes: int = 100

    def __call__(self, picture: Tensor) -> Tensor:
        self.of.fault(self.of.name, picture)
        if self.dtype == torch.float16 and self.of.name == "hot":
            return torch.full((3, *(2 * side for side in picture.shape[:2])), torch.nan)
        large = picture.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        return large.permute(2, 0, 1).float() / 255


@dataclass
class FakeShelf:
    fault: Callable[[str, Tensor], None] = lambda *_: None
    reads: Callable[[str], None] = lambda _: None
    known: dict[str, FakeUpscaler] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        self.reads(name)
        return self.known.setdefault(name, FakeUpscaler(self.fault, name))


def bench(shelf: FakeShelf, *others: FakeCheckpoint, **options: Any) -> Bench:
    made = Bench(*others, **options)
    made.checkpoint.paints = True
    made.core.upscales._readings = Readings(shelf.get)
    return made


def large(seed: int = 1, side: int = 64, **changes: Any) -> JobSpec:
    values = {"hires_scale": 2, "hires_upscaler": "two", "steps": 2, "denoising_strength": 0}
    given = {"width": side, "height": side, "sampler": "Euler", **values, **changes}
    return spec("a cat", seed, **given)


def test_while_a_model_is_read_others_go_on() -> None:
    gate = Gate()
    work = bench(FakeShelf(reads=lambda _: gate()))
    (slow,) = work.add(large())
    while not gate.reached.is_set():
        work.core.turn()
    (quick,) = work.add(spec("a dog", 2, width=128))
    for _ in range(100):
        work.core.turn()
        if quick.future.done():
            break
    assert quick.future.result(0)
    assert not slow.future.done()
    gate.open()
    work.run()
    assert slow.future.result(0).image.shape == (128, 128, 3)


def test_a_file_that_is_never_read_ends_the_jobs_that_want_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no other: nothing can stop a read that a disk does not answer."""
    now, gate = [0.0], Gate()
    monkeypatch.setattr("farm.worker.engine.readings.monotonic", lambda: now[0])
    shelf = FakeShelf(reads=lambda name: gate() if name == "lost" else None)
    work = bench(shelf)
    lost, other = work.add(large(1, hires_upscaler="lost"), large(2, hires_upscaler="lost"))
    (good,) = work.add(large(3))
    while not good.future.done():
        work.core.turn()
    assert gate.reached.is_set()
    assert not lost.future.done()
    now[0] = PATIENCE + 1
    work.run()
    for job in (lost, other):
        with pytest.raises(Unavailable, match="lost could not be read within 600 s"):
            job.future.result(0)
    gate.open()
    assert good.future.result(0).image.shape == (128, 128, 3)


def test_who_is_cancelled_while_a_model_is_read_is_gone_at_once() -> None:
    gate = Gate()
    work = bench(FakeShelf(reads=lambda _: gate()))
    (job,) = work.add(large())
    while not gate.reached.is_set():
        work.core.turn()
    work.core.jobs.cancel(job.key)
    with pytest.raises(Cancelled):
        job.future.result(0)
    work.core.turn()
    assert not work.core.upscales._read
    gate.open()


def test_what_a_model_took_is_told_of_the_attempt_that_had_it_made() -> None:
    work = bench(FakeShelf())
    plain, one, other = work.render(spec("a dog", 2), large(), large(denoising_strength=0.5))
    told = attempt._enlarged(large(), one.stats)
    assert told == {
        "upscaler": "two",
        "upscaled": 64 * 64 / 512**2,
        "upscale_seconds": one.stats.upscale_seconds,
    }
    assert 0 < one.stats.upscale_seconds < one.stats.encode_seconds
    assert (plain.stats.upscale_seconds, other.stats.upscale_seconds) == (0, 0)
    assert attempt._enlarged(spec(), plain.stats) == {}
    assert "upscale_seconds" not in attempt._columns(one.stats)
    counted = work.core.pulse.counters.busy_seconds
    assert sum(each.stats.gpu_seconds for each in (plain, one, other)) == pytest.approx(counted)


def test_tiles_count_as_a_part_of_their_group_s_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def tile(_: str, __: Tensor) -> None:
        now[0] += 1.0
        order.append("tile")

    def forward(what: str, _: Any) -> None:
        if what == "predict":
            order.append("forward")

    monkeypatch.setattr("farm.worker.engine.core.monotonic", lambda: now[0])
    work = bench(FakeShelf(tile), FakeCheckpoint("fake", fault=forward))
    work.add(large(side=512))
    while "tile" not in order:
        work.core.turn()
    work.add(spec("a dog", 2, steps=3))
    order.clear()
    work.run()
    # Of nine tiles: a turn is over after one of them, which is longer.
    assert order.index("forward") <= 2
    assert order.count("tile") == 8


def test_without_memory_tiles_shrink_for_that_model_before_anybody_leaves() -> None:
    seen: list[tuple[str, int]] = []

    def fault(name: str, picture: Tensor) -> None:
        seen.append((name, len(picture)))
        if name == "hungry" and len(picture) > 48:
            raise torch.OutOfMemoryError("CUDA out of memory")

    work = bench(FakeShelf(fault))
    work.models.recorded, work.models.idle, work.checkpoint.streamable = True, 1, True
    jobs = work.add(
        large(1, side=256, hires_upscaler="hungry"), large(2, side=256), large(3, side=256)
    )
    work.run()
    assert {job.future.result(0).image.shape for job in jobs} == {(512, 512, 3)}
    hungry = [side for name, side in seen if name == "hungry"]
    assert hungry[:4] == [TILE, TILE, TILE // 2, LEAST_TILE]
    assert {side for name, side in seen if name == "two"} == {TILE}
    assert not work.models.recorded
    assert (work.models.idle, work.checkpoint.mode) == (1, "resident")


@pytest.mark.parametrize("short", ["predict", "decode"])
def test_between_two_tiles_a_model_leaves_before_others_do_with_less(short: str) -> None:
    tiles: list[int] = []
    refused: list[str] = []

    def fault(what: str, _: Any) -> None:
        here = [each.model for each in work.core.upscales._under_way.values()]
        if what == short and any(here):
            refused.append(what)
            raise torch.OutOfMemoryError("CUDA out of memory")

    shelf = FakeShelf(lambda _, picture: tiles.append(len(picture)))
    work = bench(shelf, FakeCheckpoint("fake", fault=fault))
    (first,) = work.add(large(side=512))
    while not tiles:
        work.core.turn()
    urgent = Job("urgent", spec("a dog", 2, steps=3), 99, rank=2)
    work.core.jobs.add(urgent)
    work.run()
    assert refused == [short]
    assert urgent.future.result(0).stats.buckets == (2,)
    assert first.future.result(0).image.shape == (1024, 1024, 3)
    assert tiles == [TILE] * 9


def test_where_the_least_tiles_are_too_large_others_leave_and_then_it_is_said() -> None:
    room = [0]

    def fault(_: str, __: Tensor) -> None:
        if work.models.idle >= room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    work = bench(FakeShelf(fault))
    work.models.idle, room[0] = 3, 1
    (job,) = work.add(large())
    work.run()
    assert job.future.result(0).image.shape == (128, 128, 3)
    room[0] = -100
    (job,) = work.add(large(2))
    work.run()
    with pytest.raises(DoesNotFit, match="ran out of memory at 64x64"):
        job.future.result(0)


def test_after_an_overflow_all_but_strict_pictures_begin_in_float32() -> None:
    half, full = torch.float16, torch.float32
    shelf = FakeShelf()
    work = bench(shelf)
    work.core.upscales._dtype = half
    for seed, strict in ((1, False), (2, False), (3, True)):
        work.render(large(seed, hires_upscaler="hot", strict=strict))
    assert shelf.known["hot"].dtypes == [half, full, full, half, full]


def test_what_would_be_too_large_for_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.upscales.MOST_PIXELS", 128 * 128 - 1)
    work = bench(FakeShelf())
    (job,) = work.add(large())
    work.run()
    with pytest.raises(DoesNotFit, match="two would make 128x128 of this picture") as caught:
        job.future.result(0)
    assert "first pass smaller" in str(caught.value.remedy)


def test_a_model_that_fails_is_no_fault_of_the_worker() -> None:
    def fault(_: str, __: Tensor) -> None:
        raise RuntimeError("The size of tensor a (7) must match\nmore")

    work = bench(FakeShelf(fault))
    job, good = work.add(large(), spec("a dog", 2))
    work.run()
    with pytest.raises(UpscalerError, match="two fails at this picture: RuntimeError: The size"):
        job.future.result(0)
    assert good.future.result(0)


def test_without_the_host_s_memory_it_is_read_again_once_there_is_room() -> None:
    room = [0]

    def reads(_: str) -> None:
        if work.models.in_host > room[0]:
            raise MemoryError

    work = bench(FakeShelf(reads=reads))
    work.models.in_host = 2
    (job,) = work.add(large())
    work.run()
    assert job.future.result(0).image.shape == (128, 128, 3)
    room[0] = -100
    (job,) = work.add(large(2))
    work.run()
    with pytest.raises(Unavailable, match="no memory for an upscaler"):
        job.future.result(0)
