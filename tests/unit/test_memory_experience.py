"""What was measured goes before what was predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farm.errors import DoesNotFit
from farm.spec.measurement import Call, Measurement
from farm.worker.engine.decisions import Forward
from farm.worker.engine.limits import RowLimits
from farm.worker.memory.admission import check_fits
from farm.worker.memory.experience import ENOUGH, READINGS, Experience
from farm.worker.memory.meter import Meter, Taken
from farm.worker.memory.planner import CONTEXT, RESERVE_SHARE, Learnt, peak_bytes
from farm.worker.memory.profiles import GIB, MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from tests.fake_models import FakeCheckpoint, FakeModels

CARD = by_name("24gb")
UNET = Call("denoise", "sdxl", 2_567_000_000, "float16", "sdpa", 0, 1)
VAE = Call("decode", "sdxl", 83_700_000, "float16", "whole", 0, 1)
SMALL, LARGE = 512**2, 1024**2
MIB = 2**20


def of(pixels: int, rows: int, call: Call = UNET) -> Call:
    return replace(call, pixels=pixels, rows=rows)


def peak(experience: Experience, pixels: int = LARGE, rows: int = 16) -> int:
    learnt = Learnt(UNET, VAE, experience)
    return peak_bytes(CARD, "sdxl", pixels, rows, weights_bytes=0, learnt=learnt)


FORMULA = peak_bytes(CARD, "sdxl", LARGE, 16, weights_bytes=0)
UNET_FORMULA = 16 * 158 * MIB * 1.22


def measured(*known: tuple[Call, int]) -> Experience:
    return Experience(Measurement(call, bytes=bytes) for call, bytes in known)


def test_without_measurements_the_formula_holds() -> None:
    assert peak(Experience()) == FORMULA


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        # The very call was measured: that is what it takes, more or less than predicted.
        ([(of(LARGE, 16), 5 * GIB)], 5 * GIB),
        ([(of(LARGE, 16), 2 * GIB)], 2 * GIB),
        # Like ones were: the formula times their ratio; one that is far off changes nothing.
        ([(of(LARGE, 8), int(UNET_FORMULA / 2 * 1.3))], UNET_FORMULA * 1.3),
        ([(of(SMALL, 32), int(UNET_FORMULA / 2 * 0.8))], UNET_FORMULA * 0.8),
        (
            [
                (of(LARGE, 1), int(UNET_FORMULA / 16 * 0.9)),
                (of(LARGE, 2), int(UNET_FORMULA / 8 * 0.9)),
                (of(SMALL, 4), int(UNET_FORMULA / 16 * 3)),
            ],
            UNET_FORMULA * 0.9,
        ),
        # Never lower than what a smaller one took.
        (
            [
                (of(LARGE, 1), int(UNET_FORMULA / 16 * 0.5)),
                (of(LARGE, 2), int(UNET_FORMULA / 8 * 0.5)),
                (of(SMALL, 16), int(UNET_FORMULA)),
            ],
            UNET_FORMULA,
        ),
        # Other precisions, models and ways say nothing of this one.
        ([(replace(of(LARGE, 16), dtype="bfloat16"), 5 * GIB)], UNET_FORMULA),
        ([(replace(of(LARGE, 16), parameters=6_000_000), 5 * GIB)], UNET_FORMULA),
        ([(replace(of(LARGE, 16), mode="sliced"), 5 * GIB)], UNET_FORMULA),
    ],
)
def test_measurements_correct_the_formula(known: list[tuple[Call, int]], expected: float) -> None:
    difference = (expected - UNET_FORMULA) * RESERVE_SHARE
    assert peak(measured(*known)) - FORMULA == pytest.approx(difference, abs=2 * MIB)


def test_the_context_is_what_was_seen_past_torch() -> None:
    experience = Experience()
    for outside in (300 * MIB, 310 * MIB, 9 * GIB):
        experience.took(of(outside, 1), 1, outside)
    assert experience.outside == 310 * MIB
    assert peak(Experience([Measurement(of(1, 1), outside=GIB)])) - FORMULA == pytest.approx(
        GIB - CONTEXT, abs=1
    )


def test_what_fits_follows_what_was_measured() -> None:
    card, learnt = by_name("8gb"), Learnt(UNET, VAE)
    check_fits(card, "sdxl", 1024, 1024, learnt=learnt)
    learnt.experience.took(of(LARGE, 2), 4 * GIB, CONTEXT)  # more than anybody would predict
    with pytest.raises(DoesNotFit) as caught:
        check_fits(card, "sdxl", 1024, 1024, learnt=learnt)
    side = int(str(caught.value.remedy).rstrip(".").split("x")[-1])
    check_fits(card, "sdxl", side, side, learnt=learnt)
    assert 256 < side < 1024


def test_only_news_is_told() -> None:
    told: list[Measurement] = []
    experience = Experience(tell=told.append)
    call = of(SMALL, 4)
    for seconds in [9.0] + [0.5] * ENOUGH + [0.51] * (3 * ENOUGH):
        experience.timed(call, seconds)
    assert [one.seconds for one in told] == [0.5]  # the first, warming up, does not count
    experience.took(call, GIB, 0)
    experience.took(call, GIB - 1, 1)
    experience.failed(call)
    experience.failed(call)
    assert [(one.bytes, one.failed) for one in told[1:]] == [(GIB, False), (GIB, True)]


def test_the_next_life_knows() -> None:
    told: list[Measurement] = []
    experience = Experience(tell=told.append)
    experience.failed(of(LARGE, 8))
    assert Experience(told).too_much(of(LARGE, 8))


@pytest.mark.parametrize(
    ("failed", "asked", "too_much"),
    [
        (of(LARGE, 8), of(LARGE, 8), True),
        (of(LARGE, 8), of(LARGE, 16), True),
        (of(LARGE, 8), of(2 * LARGE, 8), True),
        (of(LARGE, 8), of(LARGE, 4), False),
        (of(LARGE, 8), of(SMALL, 16), False),
        (of(LARGE, 1), of(LARGE, 1), True),
        (of(LARGE, 1), of(2 * LARGE, 1), False),  # what else was on the card may have been why
        (of(LARGE, 8), replace(of(LARGE, 8), mode="sdpa+streamed"), False),
    ],
)
def test_what_failed_is_not_tried_again(failed: Call, asked: Call, *, too_much: bool) -> None:
    experience = Experience()
    experience.failed(failed)
    assert experience.too_much(asked) == too_much
    experience.succeeded(failed)
    assert not experience.too_much(asked)


SIZE: Any = SimpleNamespace(width=1024, height=1024)
FORWARD = Forward("fake", 1024, 1024, (0,), bucket=8, blocks=1)


class Limited:
    """Row limits of one fake checkpoint, and what it learns."""

    def __init__(self, profile: MemoryProfile = CARD, experience: Experience | None = None) -> None:
        self.checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
        self.models: Any = FakeModels(self.checkpoint)
        self.experience = experience or Experience()
        self.limits = RowLimits(cast(ModelCache, self.models), profile, experience=self.experience)

    def rows(self) -> tuple[int, int]:
        """Allowed and pinned, at 1024."""
        shape = ("fake", 1024, 1024)
        return self.limits.allowed(*shape), self.limits.pinned(*shape)

    def timed(self, seconds: dict[int, float], times: int = ENOUGH + 1) -> None:
        for rows, each in seconds.items():
            for _ in range(times):
                self.limits.timed(self.checkpoint, SIZE, rows=rows, seconds=each)


@pytest.mark.parametrize(
    ("seconds", "allowed"),
    [
        ({}, 16),
        ({16: 1.0}, 16),  # nothing to compare with
        ({4: 0.4, 8: 0.5, 16: 0.8}, 16),
        ({4: 0.4, 8: 0.5, 16: 1.0}, 8),
        ({2: 0.5, 4: 1.0, 8: 2.0, 16: 4.0}, 2),
        ({4: 0.4, 8: 0.8, 16: 1.3}, 16),  # flat in between is not flat
        ({8: 0.004, 16: 0.008}, 16),  # mostly the host's own work
    ],
)
def test_rows_stop_where_throughput_is_flat(seconds: dict[int, float], allowed: int) -> None:
    limited = Limited()
    limited.timed(seconds)
    assert limited.rows() == (allowed, 16)


def test_a_bucket_given_up_returns_only_for_a_clear_gain() -> None:
    limited = Limited()
    limited.timed({8: 0.5, 16: 0.99})  # a gain of one in a hundred
    assert limited.rows()[0] == 8
    limited.timed({16: 0.95})  # of five
    assert limited.rows()[0] == 8
    limited.timed({16: 0.90})  # of eleven
    assert limited.rows()[0] == 16
    limited.timed({16: 0.95}, times=5 * ENOUGH)
    assert limited.rows()[0] == 16


def test_a_moment_of_trouble_changes_nothing() -> None:
    limited = Limited()
    limited.timed({8: 0.5, 16: 0.8})
    limited.timed({16: 4.0}, times=ENOUGH)
    assert limited.rows()[0] == 16


def test_strict_jobs_keep_their_bucket_whatever_is_learnt() -> None:
    limited = Limited()
    limited.timed({2: 0.5, 4: 1.0, 8: 2.0, 16: 4.0})
    limited.experience.took(limited.limits.call(limited.checkpoint, LARGE, 16), 99 * GIB, 0)
    assert limited.rows() == (1, 16)


def test_what_ran_out_of_memory_is_halved_for_all_even_in_the_next_life() -> None:
    told: list[Measurement] = []
    limited = Limited(experience=Experience(tell=told.append))
    assert limited.limits.halve("fake", 1024, 1024, rows=16)
    assert limited.rows() == (8, 8)
    assert Limited(experience=Experience(told)).rows() == (8, 8)
    assert not limited.limits.halve("fake", 1024, 1024, rows=1)


class Gauge(Meter):
    """Tells what the test says."""

    def __init__(self, *taken: Taken) -> None:
        self.left = list(taken)

    @contextmanager
    def taking(self) -> Iterator[Taken]:
        yield self.left.pop()


def test_forwards_are_measured_the_first_times() -> None:
    checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
    models: Any = FakeModels(checkpoint)
    experience = Experience()
    meter = Gauge(*[Taken(size * GIB, MIB) for size in (1, 3, 2)])
    limits = RowLimits(models, CARD, experience=experience, meter=meter)
    for _ in range(READINGS + 2):
        with limits.measuring(checkpoint, FORWARD):
            pass
    known = experience.of(limits.call(checkpoint, LARGE, 8))
    assert (known.bytes, known.outside, meter.left) == (3 * GIB, MIB, [])
    lifted = replace(FORWARD, bucket=1, lift=1)  # in another precision, weights cast layer by layer
    with limits.measuring(checkpoint, lifted):
        pass
    assert experience.of(limits.call(checkpoint, LARGE, 1)).bytes is None


def test_while_weights_are_on_their_way_nothing_is_measured() -> None:
    checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
    models: Any = FakeModels(checkpoint)
    models.loading = True
    meter = Gauge(Taken(3 * GIB, MIB))
    limits = RowLimits(models, CARD, experience=Experience(), meter=meter)
    with limits.measuring(checkpoint, FORWARD):
        pass
    assert len(meter.left) == 1


def test_a_cpu_tells_nothing_of_its_memory() -> None:
    checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
    models: Any = FakeModels(checkpoint)
    experience = Experience()
    limits = RowLimits(models, CARD, experience=experience, meter=Gauge(Taken()))
    with limits.measuring(checkpoint, FORWARD):
        pass
    assert experience.of(limits.call(checkpoint, LARGE, 8)).bytes is None


def test_where_one_row_was_too_much_weights_are_streamed() -> None:
    limited = Limited()
    limited.limits.give_up("fake", 1024, 1024)
    with pytest.raises(DoesNotFit, match="1024x1024"):
        limited.limits.check(limited.checkpoint, SIZE)
    limited.checkpoint.streamable = True
    limited.limits.check(limited.checkpoint, SIZE)
    assert limited.checkpoint.mode == "streamed"


def test_a_picture_that_was_too_much_as_a_whole_is_made_in_tiles_in_this_life() -> None:
    told: list[Measurement] = []
    limited = Limited(experience=Experience(tell=told.append))
    with limited.limits.pictures.decoding(limited.checkpoint, SMALL):
        limited.checkpoint.tile_over = SMALL - 1  # as the decoder does, before it tries in tiles
    read_anew: Any = FakeCheckpoint("fake", family="sdxl")
    with limited.limits.pictures.decoding(read_anew, LARGE):
        assert read_anew.tile_over == SMALL - 1
    for _ in range(ENOUGH + 1):
        limited.limits.pictures.decoded(read_anew, LARGE, 0.5)
    tiles = read_anew.decode_call(LARGE)
    assert (tiles.mode, limited.experience.of(tiles).seconds) == ("tiles", 0.5)
    again = Limited(experience=Experience(told))
    before = again.checkpoint.tile_over
    with again.limits.pictures.decoding(again.checkpoint, LARGE):
        assert again.checkpoint.tile_over == before
