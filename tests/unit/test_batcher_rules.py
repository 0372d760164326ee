"""What runs next: each rule of the batcher on its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from farm.spec.networks import Lora
from farm.worker.engine.batcher import MAX_BLOCKS, Batcher
from farm.worker.engine.decisions import Decision, Decode, Encode, Forward, Load, Waiting

BUCKETS = (1, 2, 4, 8)
INK, FUR = (Lora("ink", 1.0),), (Lora("ink", 0.5), Lora("fur", 1.0))


def job(order: int, stage: Any = "denoise", **changes: Any) -> Waiting:
    values: dict[str, Any] = {"checkpoint": "a", "width": 64, "height": 64, "rows": 2}
    return Waiting(order, stage, **(values | changes))


def decide(*jobs: Waiting, rows: int = 8, resident: tuple[str, ...] = ("a",)) -> Decision | None:
    return Batcher(lambda *_: rows, BUCKETS).decide(jobs, resident, 0.0)


def forward(*jobs: Waiting, rows: int = 8) -> Forward:
    decision = decide(*jobs, rows=rows)
    assert isinstance(decision, Forward)
    return decision


def test_without_jobs_there_is_nothing_to_do() -> None:
    assert decide() is None


def test_a_checkpoint_is_loaded_before_anything_else_for_it() -> None:
    assert decide(job(0, "encode"), resident=()) == Load("a")


def test_a_finished_latent_comes_first() -> None:
    assert decide(job(0), job(1, "encode"), job(2, "decode")) == Decode(2)


def test_a_text_comes_before_the_forward_that_its_job_could_ride_in() -> None:
    assert decide(job(0), job(1, "encode")) == Encode(1)


@pytest.mark.parametrize(
    "too_much",
    [
        pytest.param({"width": 128}, id="another size"),
        pytest.param({"checkpoint": "b"}, id="another checkpoint"),
        pytest.param({"loras": INK}, id="another set of LoRAs"),
        pytest.param({"rows": 8}, id="no rows left"),
    ],
)
def test_a_text_waits_while_its_job_could_not_ride(too_much: dict[str, Any]) -> None:
    assert isinstance(decide(job(0), job(1, "encode", **too_much)), Forward)


@pytest.mark.parametrize(
    ("rows", "allowed", "riding", "bucket"),
    [
        ([2], 8, [0], 2),
        ([1], 8, [0], 1),
        ([2, 1], 8, [0, 1], 4),
        ([2, 2, 2], 8, [0, 1, 2], 8),
        ([2, 2, 2, 2, 2], 8, [0, 1, 2, 3], 8),
        ([2, 2, 2], 4, [0, 1], 4),
        ([2, 2, 2], 5, [0, 1], 4),
        ([2, 2, 1], 3, [0], 2),
        ([1, 2, 1], 2, [0, 2], 2),
        ([2, 1], 1, [0], 1),
    ],
)
def test_rows_fill_up_oldest_first_and_are_padded_to_a_bucket(
    rows: list[int], allowed: int, riding: list[int], bucket: int
) -> None:
    chosen = forward(*(job(order, rows=taken) for order, taken in enumerate(rows)), rows=allowed)
    assert list(chosen.orders) == riding
    assert chosen.bucket == bucket


@pytest.mark.parametrize(
    "other", [{"width": 128}, {"height": 128}, {"checkpoint": "b"}, {"loras": INK}]
)
def test_only_the_same_size_and_weights_ride_along(other: dict[str, Any]) -> None:
    assert forward(job(0), job(1, **other), job(2)).orders == (0, 2)


@pytest.mark.parametrize(
    ("blocks", "riding", "common"),
    [
        ([1, 1], [0, 1], 1),
        ([1, 2], [0, 1], 2),
        ([2, 3], [0], 2),
        ([1, 4, 2], [0, 1, 2], 4),
        ([1, MAX_BLOCKS + 1], [0], 1),
        ([6, 2, 3, 4], [0, 1, 2], 6),
        ([5, 1, 2], [0, 1], 5),
        ([12, 1, 1], [0, 1], 12),
        ([30, 1], [0], 30),
    ],
)
def test_texts_repeat_to_their_common_multiple(
    blocks: list[int], riding: list[int], common: int
) -> None:
    jobs = [job(order, rows=1, blocks=count) for order, count in enumerate(blocks)]
    chosen = forward(*jobs)
    assert (list(chosen.orders), chosen.blocks) == (riding, common)


@pytest.mark.parametrize(
    ("allowed", "pinned", "strict", "riding", "bucket"),
    [
        (4, 8, None, 2, 4),
        (4, 8, 0, 2, 8),  # what is learnt fills it less, and changes not its shape
        (4, 8, 1, 2, 8),
        (8, 4, None, 4, 8),
        (8, 4, 0, 2, 4),
        (8, 4, 3, 3, 8),  # no room is left for it in its shape, so it waits
    ],
)
def test_a_strict_job_keeps_its_bucket_whatever_is_learnt(
    allowed: int, pinned: int, strict: int | None, riding: int, bucket: int
) -> None:
    jobs = [job(n, strict=n == strict) for n in range(4)]
    batcher = Batcher(lambda *_: allowed, BUCKETS, rows_pinned=lambda *_: pinned)
    chosen = batcher.decide(jobs, ("a",), 0.0)
    assert isinstance(chosen, Forward)
    assert (len(chosen.orders), chosen.bucket) == (riding, bucket)


@pytest.mark.parametrize(
    ("blocks", "strict", "riding"),
    [
        ([1, 2, 1], 0, [0, 2]),
        ([2, 1, 4], 0, [0, 1]),
        ([1, 2], 1, [0, 1]),
        ([2, 1], 1, [0]),
    ],
)
def test_a_strict_job_keeps_its_shape(blocks: list[int], strict: int, riding: list[int]) -> None:
    jobs = [job(n, rows=1, blocks=count, strict=n == strict) for n, count in enumerate(blocks)]
    chosen = forward(*jobs)
    assert list(chosen.orders) == riding
    if strict in riding:
        assert (chosen.bucket, chosen.blocks) == (8, blocks[strict])


def test_a_job_whose_texts_are_too_unlike_runs_alone_row_by_row() -> None:
    unlike = job(0, blocks=67 * 66, alone=True)
    chosen = forward(unlike, job(1))
    assert (chosen.orders, chosen.bucket) == ((0,), 1)
    assert forward(replace(unlike, strict=True), job(1)).bucket == 1
    assert forward(job(0), replace(unlike, order=1), job(2)).orders == (0, 2)


def orders(decision: Decision | None) -> tuple[int, ...]:
    assert isinstance(decision, Forward)
    return decision.orders


class TestTurns:
    """While job 1 waits for checkpoint b, jobs of the resident a go on for a while."""

    RESIDENT, OTHER = job(0), job(1, checkpoint="b")
    BOTH = (RESIDENT, OTHER)

    def batcher(self) -> Batcher:
        batcher = Batcher(lambda *_: 8, BUCKETS, patience=10)
        assert orders(batcher.decide([self.RESIDENT], ["a"], 50.0)) == (0,)
        assert orders(batcher.decide(self.BOTH, ["a"], 100.0)) == (0,)
        return batcher

    def test_what_is_there_goes_on_within_patience(self) -> None:
        assert orders(self.batcher().decide(self.BOTH, ["a"], 109.9)) == (0,)

    def test_then_the_other_job_gets_its_checkpoint(self) -> None:
        assert self.batcher().decide(self.BOTH, ["a"], 110.0) == Load("b")

    def test_without_work_for_what_is_there_nobody_waits(self) -> None:
        assert self.batcher().decide([self.OTHER], ["a"], 100.0) == Load("b")

    def test_the_weights_that_were_served_longest_ago_are_next(self) -> None:
        batcher, third = self.batcher(), job(2, checkpoint="c")
        resident, loads = ["a"], []
        for now in range(101, 171):
            decision = batcher.decide([*self.BOTH, third], resident, float(now))
            if isinstance(decision, Load):
                loads.append((decision.checkpoint, now))
                resident = [decision.checkpoint]
        # The turn of 10 seconds begins with the first forward after the load.
        assert loads == [("b", 110), ("c", 121), ("a", 132), ("b", 143), ("c", 154), ("a", 165)]

    def test_a_turn_of_weights_begins_after_their_load(self) -> None:
        batcher = self.batcher()
        assert batcher.decide(self.BOTH, ["a"], 110.0) == Load("b")
        assert orders(batcher.decide(self.BOTH, ["b"], 150.0)) == (1,)
        assert orders(batcher.decide(self.BOTH, ["b"], 159.9)) == (1,)
        assert batcher.decide(self.BOTH, ["b"], 160.0) == Load("a")

    def test_after_a_pause_what_is_there_goes_first(self) -> None:
        later = [job(2, checkpoint="b"), job(3)]
        batcher = Batcher(lambda *_: 8, BUCKETS, patience=10)
        assert orders(batcher.decide([self.RESIDENT], ["a"], 100.0)) == (0,)
        assert orders(batcher.decide(later, ["a"], 900.0)) == (3,)

    def test_a_load_that_failed_is_not_waited_for(self) -> None:
        batcher = self.batcher()
        assert batcher.decide(self.BOTH, ["a"], 110.0) == Load("b")
        assert orders(batcher.decide([self.RESIDENT], ["a"], 111.0)) == (0,)


class TestTurnsOfSets:
    """A set of LoRAs has its turn as a checkpoint has, on a checkpoint that stays resident."""

    WORN, OTHER = job(0, loras=INK), job(1, loras=FUR)

    def batcher(self) -> Batcher:
        batcher = Batcher(lambda *_: 8, BUCKETS, patience=10)
        decision = batcher.decide([self.WORN], ["a"], 100.0)
        assert isinstance(decision, Forward)
        assert decision.loras == INK
        return batcher

    @pytest.mark.parametrize(("now", "order"), [(109.9, 0), (110.0, 1)])
    def test_the_set_that_is_on_goes_on_within_patience(self, now: float, order: int) -> None:
        batcher, both = self.batcher(), [self.WORN, self.OTHER]
        assert orders(batcher.decide(both, ["a"], 100.0)) == (0,)
        decision = batcher.decide(both, ["a"], now)
        assert isinstance(decision, Forward)
        assert decision.orders == (order,)
        assert decision.loras == (FUR if order else INK)

    def test_without_work_of_its_own_it_comes_off_at_once(self) -> None:
        decision = self.batcher().decide([job(0), self.OTHER], ["a"], 100.0)
        assert isinstance(decision, Forward)
        assert (decision.orders, decision.loras) == ((0,), ())

    def test_what_another_checkpoint_wears_needs_no_patience(self) -> None:
        batcher, other = self.batcher(), job(2, checkpoint="b", loras=FUR)
        seen = {orders(batcher.decide([other], ["a", "b"], 101.0))}
        for _ in range(1000):
            seen.add(orders(batcher.decide([self.WORN, other], ["a", "b"], 102.0)))
        assert seen == {(0,), (2,)}

    def test_a_checkpoint_that_was_loaded_again_wears_nothing(self) -> None:
        batcher = self.batcher()
        assert batcher.decide([self.WORN], ["b"], 101.0) == Load("a")
        plain = job(2)
        assert orders(batcher.decide([plain], ["a", "b"], 102.0)) == (2,)
        # So that the bare checkpoint goes on for a while.
        assert orders(batcher.decide([plain, self.WORN], ["a", "b"], 103.0)) == (2,)

    def test_the_text_of_a_job_with_another_set_waits(self) -> None:
        waiting = job(2, "encode", loras=FUR)
        assert orders(self.batcher().decide([self.WORN, waiting], ["a"], 101.0)) == (0,)


class TestQuanta:
    """Groups of the same weights take turns by seconds of the device."""

    SECONDS = {64: 0.125, 128: 0.375, 256: 1.5}  # noqa: RUF012

    def turns(self, jobs: list[Waiting], count: int, quantum: float = 0.5) -> list[int]:
        """The first order of each of so many forwards."""
        batcher = Batcher(
            lambda *_: 8,
            BUCKETS,
            seconds=lambda _, width, *__: self.SECONDS[width],
            quantum=quantum,
        )
        return [orders(batcher.decide(jobs, ["a"], 0.0))[0] for _ in range(count)]

    def test_a_turn_is_as_many_forwards_as_a_quantum_pays(self) -> None:
        # What the last one took too much is paid with the next turn: 4, 1, and 1 are 12 / 8 too.
        turns = ([0] * 4 + [1] * count for count in (2, 1, 1, 2, 1, 1))
        assert self.turns([job(0), job(1, width=128)], 32) == list(chain(*turns))

    def test_a_quantum_is_no_less_than_the_longest_forward(self) -> None:
        turns = ([0] * count + [1] for count in (4, 4, 12, 12, 12))
        assert self.turns([job(0), job(1, width=256)], 49) == list(chain(*turns))

    def test_who_rides_along_is_served_too(self) -> None:
        jobs = [job(0), job(1, width=128), job(2), job(3, width=128)]
        batcher = Batcher(lambda *_: 8, BUCKETS, seconds=lambda *_: 1.0)
        assert orders(batcher.decide(jobs, ["a"], 0.0)) == (0, 2)
        assert orders(batcher.decide(jobs, ["a"], 0.0)) == (1, 3)

    def test_who_is_new_comes_last_and_who_was_gone_is_new(self) -> None:
        batcher = Batcher(lambda *_: 8, BUCKETS, seconds=lambda *_: 1.0)
        small, wide, high = job(0), job(1, width=128), job(2, height=128)
        assert orders(batcher.decide([small, wide], ["a"], 0.0)) == (0,)
        assert orders(batcher.decide([small, wide, high], ["a"], 0.0)) == (1,)
        assert orders(batcher.decide([wide, high], ["a"], 0.0)) == (2,)
        back = [orders(batcher.decide([small, wide, high], ["a"], 0.0)) for _ in range(3)]
        assert back == [(1,), (2,), (0,)]

    def test_several_forwards_of_a_large_job_cost_as_many(self) -> None:
        batcher = Batcher(lambda *_: 2, BUCKETS, seconds=lambda *_: 0.25, quantum=0.5)
        jobs = [job(0, rows=8), job(1, width=128)]
        taken = [orders(batcher.decide(jobs, ["a"], 0.0))[0] for _ in range(9)]
        assert taken == [0, 1, 1, 0, 1, 1, 1, 1, 0]

    def test_texts_cost_nothing(self) -> None:
        batcher = Batcher(lambda *_: 8, BUCKETS, seconds=lambda *_: 1.0)
        jobs = [job(0, "encode"), job(1, width=128)]
        assert [batcher.decide(jobs, ["a"], 0.0) for _ in range(3)] == [Encode(0)] * 3


def test_a_higher_rank_goes_first_and_the_others_ride_along() -> None:
    chosen = forward(job(0, rows=2), job(1, rows=2), job(2, rank=2), rows=4)
    assert chosen.orders == (2, 0)


def test_it_waits_for_no_turn_of_a_lower_rank() -> None:
    batcher = Batcher(lambda *_: 8, BUCKETS, patience=100.0)
    slow = [job(0), job(1)]
    batcher.decide(slow, ("a",), 0.0)
    urgent = job(2, checkpoint="b", rank=2)
    assert batcher.decide([*slow, urgent], ("a",), 1.0) == Load("b")
    decision = batcher.decide([*slow, urgent], ("a", "b"), 2.0)
    assert isinstance(decision, Forward)
    assert decision.orders == (2,)
    # Gone, it leaves the turn to those who stood where they were.
    back = batcher.decide(slow, ("a", "b"), 3.0)
    assert isinstance(back, Forward)
    assert back.orders == (0, 1)


def test_a_lower_rank_does_not_end_the_turn_of_a_higher_one() -> None:
    batcher = Batcher(lambda *_: 8, BUCKETS)
    urgent, slow = job(5, rank=2), job(0, checkpoint="b", rank=0)
    decision = batcher.decide([slow, urgent], ("a", "b"), 0.0)
    assert isinstance(decision, Forward)
    assert decision.orders == (5,)
