"""Which texts are encoded together, and for whom."""

from __future__ import annotations

import pytest
import torch

from farm.errors import InvalidInput
from farm.worker.models.text import AT_ONCE
from tests.engine_bench import Bench
from tests.fake_models import FakeCheckpoint, spec

CROWD = [spec(f"picture {n}", n, steps=1 + n % 3, negative_prompt="fog") for n in range(6)]


def test_texts_that_wait_together_are_encoded_together() -> None:
    bench = Bench()
    made = bench.render(*CROWD)
    assert bench.checkpoint.texts_together == [6, 1]
    shares = [each.stats.encode_seconds for each in made]
    assert all(shares)


def test_jobs_of_other_sizes_and_loras_on_the_unet_alone_have_theirs_encoded_too() -> None:
    bench = Bench()
    bench.render(spec("a", cfg_scale=1.0), spec("b", cfg_scale=1.0, width=128))
    assert bench.checkpoint.texts_together == [2]


def test_a_strict_job_s_texts_are_encoded_by_themselves_and_are_nobody_else_s() -> None:
    bench = Bench()
    bench.render(*CROWD, CROWD[0].model_copy(update={"strict": True}))
    assert sorted(bench.checkpoint.texts_together) == [1, 1, 1, 6]
    assert bench.checkpoint.encoded.count("picture 0") == 2


def test_texts_that_are_read_in_another_way_or_by_another_checkpoint_are_not() -> None:
    one, other = FakeCheckpoint("one"), FakeCheckpoint("other")
    bench = Bench(one, other)
    jobs = [
        spec("a", checkpoint="one"),
        spec("b", checkpoint="one", clip_skip=2),
        spec("c", checkpoint="other"),
    ]
    bench.render(*(job.model_copy(update={"cfg_scale": 1.0}) for job in jobs))
    assert (one.texts_together, other.texts_together) == ([1, 1], [1])


def test_there_are_never_more_than_go_through_an_encoder_at_once() -> None:
    bench = Bench()
    bench.render(*(spec(f"{n}", cfg_scale=1.0, steps=1) for n in range(AT_ONCE + 3)))
    assert bench.checkpoint.texts_together == [AT_ONCE, 3]


@pytest.mark.parametrize("error", [InvalidInput("A text."), torch.OutOfMemoryError("full")])
def test_where_several_fail_each_is_tried(error: Exception) -> None:
    bench = Bench()

    def fault(what: str, seen: object) -> None:
        if what == "encode" and seen == "picture 2" and len(bench.checkpoint.texts_together) == 1:
            raise error

    bench.checkpoint.fault = fault
    assert len(bench.render(*CROWD)) == 6
    assert bench.checkpoint.texts_together == [6, *[1] * 6, 1]
