"""Parts of a prompt, texts that change, and calls without the negative prompt, as rows of one
forward; against a plain loop in float64, on a model known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from farm.spec.job import JobSpec
from farm.worker.engine import runner
from farm.worker.engine.rows import Rows
from farm.worker.samplers import compile_program
from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.noise import ImageNoise
from tests.engine_bench import Bench, alone
from tests.fake_models import ALPHAS, denoised, mean_of, spec

Said = Callable[[int], Sequence[tuple[str, float]]]


def by_loop(job: JobSpec, says: Said, away: Callable[[int], str | None]) -> Any:
    """The image of a sampler without noise of its own, one call at a time.

    Args:
        says: for each call the parts of the prompt with their weights.
        away: what each call moves away from; None for no guidance.
    """
    program = compile_program(job.sampler, job.steps, ALPHAS)
    shape = (4, job.height // 8, job.width // 8)
    registers = np.zeros((4, *shape))
    first = ImageNoise(shape, job.seed, job.noise, program.halving).first.numpy()
    registers[0] = first * program.start.noise
    for call, step in enumerate(program.steps):
        level = ModelSigmas(ALPHAS).sigma(step.t)
        seen = registers[0] * ((level**2 + 1) / (step.sigma**2 + 1)) ** 0.5

        def output(text: str, level: float = level, seen: Any = seen) -> Any:
            return (seen - denoised(seen, level, mean_of(text))) / level

        parts, negative = says(call), away(call)
        base = output(parts[0][0] if negative is None else negative)
        towards = sum((output(text) - base) * weight for text, weight in parts)
        guided = base + towards * (1 if negative is None else job.cfg_scale)
        if job.cfg_rescale and negative is not None:
            ratio = (base + towards).std() / guided.std()
            guided *= job.cfg_rescale * ratio + 1 - job.cfg_rescale
        held = [*registers, *(registers[0] - step.sigma * each for each in (guided, base))]
        held.append(np.zeros(shape))
        registers = np.tensordot(np.array(step.update), np.stack(held), axes=1)
    return registers[0].transpose(1, 2, 0)


def always(*parts: tuple[str, float]) -> Said:
    return lambda call: parts


def switching(*texts: str, after: int) -> Said:
    return lambda call: [(texts[0] if call < after else texts[1], 1.0)]


def fog(call: int) -> str:
    return "fog"


CASES: dict[str, tuple[JobSpec, Said, Callable[[int], str | None]]] = {
    "two parts": (
        spec("a cat AND a dog :0.5"), always(("a cat", 1), ("a dog", 0.5)), lambda c: "",
    ),
    "three parts, one negative": (
        spec("a :1.2 AND b :-0.4 AND c", negative_prompt="fog"),
        always(("a", 1.2), ("b", -0.4), ("c", 1)), fog,
    ),
    "parts without a negative prompt": (
        spec("a cat :0.25 AND a dog :0.75", cfg_scale=1.0),
        always(("a cat", 0.25), ("a dog", 0.75)), lambda c: "whatever",
    ),
    "parts that need one at scale 1": (
        spec("a cat AND a dog", cfg_scale=1.0, negative_prompt="fog"),
        always(("a cat", 1), ("a dog", 1)), fog,
    ),
    "editing": (
        spec("[a cat:a dog:2]", negative_prompt="fog", steps=5),
        switching("a cat", "a dog", after=2), fog,
    ),
    "editing of the negative prompt": (
        spec("a cat", negative_prompt="[fog:rain:0.5]", steps=6),
        always(("a cat", 1)), lambda c: "fog" if c < 3 else "rain",
    ),
    "alternation": (
        spec("a [cat|dog]", steps=5, cfg_scale=1.0),
        lambda c: [(("a cat", "a dog")[c % 2], 1)], lambda c: None,
    ),
    "editing counts calls": (
        spec("[a:b:3]", steps=4, sampler="Heun"), switching("a", "b", after=3), lambda c: "",
    ),
    "parts that change by themselves": (
        spec("[a:b:1] AND [c:d:3]", steps=5),
        lambda c: [("a" if c < 1 else "b", 1), ("c" if c < 3 else "d", 1)], lambda c: "",
    ),
    "NGMS": (
        spec("a", steps=7, negative_prompt="fog", s_min_uncond=4),
        always(("a", 1)), lambda c: None if c % 2 and SIGMAS[c] < 4 else "fog",
    ),
    "NGMS in all steps": (
        spec("a", steps=7, negative_prompt="fog", s_min_uncond=4, s_min_uncond_all=True),
        always(("a", 1)), lambda c: None if SIGMAS[c] < 4 else "fog",
    ),
    "NGMS with parts": (
        spec("a AND b :0.5", steps=7, s_min_uncond=15),
        always(("a", 1), ("b", 0.5)), lambda c: None if c % 2 else "",
    ),
    "skip early": (
        spec("a", steps=5, skip_early_cond=0.4),
        always(("a", 1)), lambda c: None if c <= 2 else "",
    ),
    "an interval": (
        spec("a", steps=10, guidance_start=0.2, guidance_end=0.7),
        always(("a", 1)), lambda c: "" if 2 <= c < 7 else None,
    ),
    "rescale": (
        spec("a", cfg_scale=9.0, cfg_rescale=0.7, negative_prompt="fog"),
        always(("a", 1)), fog,
    ),
    "rescale with parts and gaps": (
        spec("a AND b :0.5", cfg_scale=9.0, cfg_rescale=1.0, steps=6, guidance_end=0.5),
        always(("a", 1), ("b", 0.5)), lambda c: "" if c < 3 else None,
    ),
}  # fmt: skip
SIGMAS = [step.sigma for step in compile_program("Euler", 7, ALPHAS).steps]
CASES = {
    name: (
        job if job.sampler == "Heun" else job.model_copy(update={"sampler": "Euler", "seed": seed}),
        says,
        away,
    )
    for seed, (name, (job, says, away)) in enumerate(CASES.items())
}
CROWD = [job for job, _, _ in CASES.values()]


@pytest.mark.parametrize("name", CASES)
def test_the_engine_does_what_a_plain_loop_does(name: str) -> None:
    job, says, away = CASES[name]
    expected = by_loop(job, says, away)
    np.testing.assert_allclose(alone(job), expected, rtol=0, atol=5e-4 * np.abs(expected).max())


def test_the_cases_are_told_apart() -> None:
    """Each has an image of its own, and another than without its peculiarity."""
    assert len({alone(job).tobytes() for job in CROWD}) == len(CROWD)


def test_together_each_gets_what_it_gets_alone() -> None:
    bench = Bench(rows=32)
    for job in CROWD:
        bench.add(job)
        bench.run(turns=3)
    bench.run()
    for job, made in zip(CROWD, bench.jobs, strict=True):
        np.testing.assert_allclose(made.future.result(0).image, alone(job), rtol=0, atol=1e-4)


@pytest.mark.parametrize("place", [0, 4, 9, 15])
def test_a_strict_job_is_bit_equal_in_a_crowd(place: int) -> None:
    strict = CROWD[place].model_copy(update={"strict": True})
    crowd = Bench().render(*CROWD[:place], strict, *CROWD[place + 1 :])
    assert np.array_equal(crowd[place].image, alone(strict))


def test_identical_parts_that_sum_up_to_1_are_the_plain_prompt() -> None:
    plain, parts = spec("a cat", 3), spec("a cat :0.3 AND a cat :0.7", 3)
    np.testing.assert_allclose(alone(parts), alone(plain), rtol=0, atol=1e-5)


def test_a_single_part_is_a_prompt_without_and() -> None:
    assert np.array_equal(alone(spec("a cat[ nap::4]", 3)), alone(spec("a cat nap", 3)))


@pytest.mark.parametrize(
    ("job", "rows"),
    [
        (spec(steps=6, cfg_scale=1.0), [1, 1, 1, 1, 1, 1]),
        (spec(steps=6), [2, 2, 2, 2, 2, 2]),
        (spec("a AND b", steps=3), [3, 3, 3]),
        (spec("a AND b", steps=3, cfg_scale=0.5), [2, 2, 2]),
        (spec("a AND b", steps=3, cfg_scale=1.0), [3, 3, 3]),
        (spec(steps=6, s_min_uncond=15), [2, 1, 2, 1, 2, 1]),
        (spec(steps=6, s_min_uncond=15, s_min_uncond_all=True), [1, 1, 1, 1, 1, 1]),
        (spec(steps=6, skip_early_cond=0.5), [1, 1, 1, 1, 2, 2]),
        (spec(steps=6, skip_early_cond=1.0), [1, 1, 1, 1, 1, 1]),
        (spec(steps=6, guidance_start=0.5), [1, 1, 1, 2, 2, 2]),
        (spec(steps=6, guidance_end=0.5), [2, 2, 2, 1, 1, 1]),
        (spec("a AND b", steps=4, guidance_start=0.5), [2, 2, 3, 3]),
        (spec(steps=3, sampler="Heun", guidance_end=0.5), [2, 2, 2, 1, 1]),
    ],
    ids=str,
)
def test_every_call_takes_the_rows_it_needs(job: JobSpec, rows: list[int]) -> None:
    bench = Bench()
    (added,) = bench.add(job)
    taken: list[int] = []
    decide = bench.core._batcher.decide

    def watched(waiting: Any, *rest: Any) -> Any:
        decision = decide(waiting, *rest)
        if type(decision).__name__ == "Forward":
            taken.append(waiting[0].rows)
        return decision

    bench.core._batcher.decide = watched  # type: ignore[method-assign]
    bench.run()
    stats = added.future.result(0).stats
    # Before the first call its noise level is not known, so it may be counted with one row more.
    assert taken[1:] == rows[1:]
    assert taken[0] in (rows[0], rows[0] + 1)
    assert stats.mean_rows == pytest.approx(sum(rows) / len(rows))
    assert bench.core.pulse.counters.rows == sum(rows)


def test_rows_that_one_job_leaves_are_another_s() -> None:
    bench = Bench(rows=4)
    jobs = [spec("a", 1, steps=8, guidance_end=0.5), spec("b", 2, steps=8, guidance_end=0.5)]
    jobs += [spec("c", 3, steps=4), spec("d", 4, steps=4, cfg_scale=1.0)]
    bench.render(*jobs)
    # Two jobs of two rows fill the card for four calls; then their other rows go to the third.
    assert bench.checkpoint.forwards[:8] == [4, 4, 4, 4, 4, 4, 4, 4]
    assert len(bench.checkpoint.forwards) == 12


def test_the_books_balance() -> None:
    bench = Bench(rows=32)
    stats = [made.stats for made in bench.render(*CROWD)]
    counters = bench.core.pulse.counters
    assert sum(s.gpu_seconds for s in stats) == pytest.approx(counters.busy_seconds)
    assert counters.rows + counters.padded_rows == sum(bench.checkpoint.forwards)


def test_rows_are_packed_anew_only_when_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[Rows] = []

    def pack(*args: Any, **options: Any) -> Rows:
        packed.append(Rows(*args, **options))
        return packed[-1]

    monkeypatch.setattr(runner, "Rows", pack)
    for prompt, times in (("a", 1), ("[a:b:3]", 2), ("[a|b]", 2), ("[a:b:1] AND [c:d:4]", 3)):
        packed.clear()
        Bench().render(spec(prompt, steps=6))
        assert len(packed) == times, prompt


def test_all_that_a_part_says_is_encoded_in_one_go() -> None:
    bench = Bench()
    (job,) = bench.add(spec("[a|b] AND [c:d:2] AND [a|b]", negative_prompt="[e:f:1]"))
    turns = 0
    while job.slot is None:
        bench.run(turns=1)
        turns += 1
    assert bench.checkpoint.encoded == ["a", "b", "c", "d", "e", "f"]
    assert turns == 1 + 3 + 1  # load, encode, and the first forward


def test_parts_of_unlike_length_are_filled_up_with_their_last_vector() -> None:
    long = "one " * 5 + "two"
    job = spec(f"a AND {long}", cfg_scale=2.0, sampler="Euler")
    bench = Bench()
    (made,) = bench.render(job)
    assert bench.checkpoint.longest_text == 2 * 77
    expected = by_loop(job, always(("a", 1), (long, 1)), lambda call: "")
    np.testing.assert_allclose(made.image, expected, rtol=0, atol=2e-3)


def test_comments_and_tags_are_no_part_of_what_is_said() -> None:
    bench = Bench()
    bench.render(spec("a cat # AND a dog\n[b::1]<lora:ink>", negative_prompt="fog # rain"))
    assert bench.checkpoint.encoded == ["a cat \nb", "a cat \n", "fog "]
