"""What the engine makes of jobs, one decision at a time, on a model known in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import workloads
from farm.worker.engine.job import Job
from farm.worker.engine.runner import Stepped
from farm.worker.models.catalogue import AssetFile
from tests.by_hand import by_hand
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, spec

MIXED = [
    spec("a red apple", 1, sampler="Euler", steps=3),
    spec("a cat", 2, sampler="Euler a", steps=7, cfg_scale=7.0),
    spec("a very long prompt about one house in the far woods", 3, steps=4, negative_prompt="fog"),
    spec("a bus", 4, sampler="DPM++ 2M Karras", steps=5, cfg_scale=1.0),
    spec("a red apple", 5, sampler="DPM++ 2M Karras", steps=2),
    spec("a cat", 6, sampler="Euler a", steps=1, cfg_scale=1.5),
    spec("a lion", 7, sampler="Euler", steps=6, cfg_scale=1.0),
    spec("", 2**63 - 1, sampler="Euler a", steps=4, cfg_scale=0.0),
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_crowd_of_different_jobs_gets_what_each_gets_by_hand(
    family: str, prediction: str
) -> None:
    bench = Bench(FakeCheckpoint("fake", family, prediction))
    for job, made in zip(MIXED, bench.render(*MIXED), strict=True):
        np.testing.assert_allclose(made.image, by_hand(job), rtol=0, atol=2e-4)
    assert len(bench.checkpoint.forwards) < sum(job.steps for job in MIXED) / 2


def test_sixteen_mixed_jobs_take_a_quarter_of_a_loop_s_forwards() -> None:
    """The benchmark's mixture, within the rows that a CPU's profile allows."""
    jobs = workloads.mixed("fake", 16, 64, one_size=True)
    bench = Bench()
    bench.render(*jobs)
    assert 4 * len(bench.checkpoint.forwards) <= sum(job.steps for job in jobs)


def test_of_each_size_mixed_jobs_take_no_more_forwards_than_the_longest_has_steps() -> None:
    jobs = workloads.mixed("fake", 16, 64)
    bench = Bench()
    bench.render(*jobs)
    sizes = {job.size for job in jobs}
    longest = [max(job.steps for job in jobs if job.size == size) for size in sizes]
    assert len(sizes) == 3
    assert len(bench.checkpoint.forwards) == sum(longest)


def test_jobs_that_join_later_get_the_same_image() -> None:
    bench = Bench()
    for job in MIXED:
        bench.add(job)
        bench.run(turns=3)
    bench.run()
    for job, joined in zip(MIXED, bench.jobs, strict=True):
        image = joined.future.result(0).image
        np.testing.assert_allclose(image, alone(job), rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", range(len(MIXED)))
def test_a_strict_job_is_bit_equal_alone_and_in_a_crowd(place: int) -> None:
    strict = MIXED[place].model_copy(update={"strict": True})
    bench = Bench()
    crowd = bench.render(*MIXED[:place], strict, *MIXED[place + 1 :])
    assert np.array_equal(crowd[place].image, alone(strict))
    assert crowd[place].stats.buckets == (16,)


def test_a_checkpoint_whose_file_is_another_reads_its_texts_anew() -> None:
    files = [AssetFile("fake", Path("fake"), "sd15", 64, 1, marks=((1, 1, 1),))]
    bench = Bench(assets=files)
    bench.render(spec("a cat", steps=1), spec("a cat", seed=2, steps=1))
    before = len(bench.checkpoint.encoded)
    files[0] = replace(files[0], marks=((1, 2, 1),))
    bench.render(spec("a cat", steps=1))
    assert len(bench.checkpoint.encoded) == 2 * before


def test_forwards_with_a_strict_job_run_as_they_are() -> None:
    bench = Bench()
    bench.render(spec(steps=2, strict=True), spec(seed=2, steps=4))
    assert bench.checkpoint.plainly == [True, True, False, False]


@pytest.mark.parametrize(
    ("cfg_scale", "texts", "rows"),
    [(1.0, ["a cat"], 1), (3.0, ["a cat", ""], 2), (0.0, ["a cat", ""], 2)],
)
def test_without_guidance_the_negative_prompt_costs_nothing(
    cfg_scale: float, texts: list[str], rows: int
) -> None:
    bench = Bench()
    (made,) = bench.render(spec("a cat", steps=3, cfg_scale=cfg_scale))
    assert bench.checkpoint.encoded == texts
    assert bench.checkpoint.forwards == [rows] * 3
    assert made.stats.mean_rows == rows


def test_equal_texts_are_encoded_once() -> None:
    bench = Bench()
    bench.render(spec("a cat", 1), spec("a cat", 2), spec("a dog", 3))
    bench.render(spec("a cat", 4))
    assert sorted(bench.checkpoint.encoded) == ["", "a cat", "a dog"]


def test_texts_used_longest_ago_leave_a_full_cache() -> None:
    one_text = 77 * 8 * 4
    bench = Bench(text_cache_bytes=2 * one_text)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        bench.render(spec(prompt, cfg_scale=1.0))
    assert bench.checkpoint.encoded == ["a", "b", "c", "b"]


def test_texts_of_very_different_length_are_not_repeated_out_of_all_proportion() -> None:
    unlike = spec("one " * 5 * 13, negative_prompt="two " * 5 * 12, steps=3)
    bench = Bench()
    crowd = bench.render(unlike, *MIXED[:2])
    assert bench.checkpoint.longest_text == 77 * 13
    assert crowd[0].stats.mean_rows == 1
    np.testing.assert_allclose(crowd[0].image, by_hand(unlike), rtol=0, atol=2e-4)


def test_another_checkpoint_and_another_size_get_their_turn() -> None:
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"))
    specs = [spec(), spec(width=128), spec(checkpoint="other"), spec(seed=2)]
    shapes = [made.image.shape for made in bench.render(*specs)]
    assert shapes == [(8, 8, 4), (8, 16, 4), (8, 8, 4), (8, 8, 4)]
    assert bench.models.loads == ["fake", "other"]


def test_checkpoints_that_jobs_wait_for_are_read_ahead_of_their_turn() -> None:
    bench = Bench(*(FakeCheckpoint(name) for name in ("fake", "second", "third")))
    bench.render(spec(), spec(checkpoint="third"), spec(checkpoint="second"), spec(seed=2))
    assert bench.models.prefetched[0] == ["third", "second"]  # while the first is loaded
    assert all("fake" not in names for names in bench.models.prefetched)


def test_the_books_balance() -> None:
    bench = Bench()
    stats = [made.stats for made in bench.render(*MIXED)]
    counters = bench.core.pulse.counters
    assert sum(s.gpu_seconds for s in stats) == pytest.approx(counters.busy_seconds)
    assert [s.steps for s in stats] == [job.steps for job in MIXED]
    assert counters.forwards == len(bench.checkpoint.forwards)
    assert counters.rows + counters.padded_rows == sum(bench.checkpoint.forwards)
    assert counters.rows == sum(job.steps * (1 if job.cfg_scale == 1 else 2) for job in MIXED)
    for s in stats:
        assert s.iterations_per_second == pytest.approx(s.steps / s.denoise_seconds)
        assert set(s.buckets) <= set(bench.checkpoint.forwards)
        assert s.memory.system_total > s.memory.system_used > 0
        assert s.memory.active > 0


def test_progress_is_told_in_order_and_seldom() -> None:
    told: list[tuple[str, int, int]] = []
    bench = Bench(on_progress=lambda *what: told.append(what))
    bench.render(spec(steps=100, cfg_scale=1.0), spec(steps=50, seed=2))
    assert {key for key, _, _ in told} == {"job-0", "job-1"}
    assert len(told) < 75
    for key, total in (("job-0", 100), ("job-1", 50)):
        steps = [done for who, done, steps in told if who == key and steps == total]
        assert steps == sorted(set(steps))
        assert 0 < steps[0] <= steps[-1] <= total


def test_who_listens_to_progress_badly_hurts_nobody() -> None:
    def listener(*_: Any) -> None:
        raise RuntimeError("I hung up")

    assert Bench(on_progress=listener).render(spec())[0].stats.steps == 4


def test_a_heartbeat_says_what_is_being_done() -> None:
    seen: list[str] = []
    bench = Bench()
    bench.checkpoint.fault = lambda *_: seen.append(bench.core.pulse.heartbeat.doing)
    bench.render(spec(steps=1, cfg_scale=1.0))
    assert seen == ["encode", "denoise", "decode"]
    assert bench.core.pulse.heartbeat.doing == "idle"


def test_it_says_so_too_where_a_step_is_waited_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(), []
    bench.add(spec(steps=9))
    bench.run(turns=6)
    finite = Stepped.finite

    def watched(stepped: Stepped) -> list[bool]:
        seen.append(bench.core.pulse.heartbeat.doing)
        return finite(stepped)

    monkeypatch.setattr(Stepped, "finite", watched)
    bench.core.rest()
    assert seen == ["denoise"]
    assert bench.core.pulse.heartbeat.doing == "idle"


def test_an_urgent_job_goes_first_and_the_others_go_on_where_they_stood() -> None:
    bench = Bench(rows=2)
    slow = bench.add(spec("a cat", 1, steps=6), spec("a bus", 2, steps=6, sampler="Euler a"))
    bench.run(turns=6)
    assert not any(job.image is not None for job in slow)
    urgent = Job("urgent", spec("a dog", 3, steps=4), 9, 2)
    bench.core.jobs.add(urgent)
    before = len(bench.checkpoint.forwards)
    while urgent.image is None:
        bench.core.turn()
    assert len(bench.checkpoint.forwards) - before <= 4 + 1  # its own, and one under way
    bench.run()
    for job, given in zip(slow, (job.spec for job in slow), strict=True):
        np.testing.assert_array_equal(job.future.result(0).image, alone(given, rows=2))
