"""Jobs with and without LoRAs on one card, on a model known in closed form.

LoRAs move what the fake makes by the sum of their strengths, on each side of it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import CheckpointError
from farm.spec import networks
from farm.spec.job import JobSpec
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.kinds import LORA
from farm.worker.models.library import Library
from farm.worker.samplers import compile_program
from tests.engine_bench import Bench, alone
from tests.fake_models import ALPHAS, FakeCheckpoint, denoised, mean_of, spec

PROMPTS = [
    "a cat",
    "a cat<lora:ink:0.5>",
    "a dog<lora:ink:0.5>",
    "a cat<lora:ink:0.25:0.5>",
    "a cat<lora:ink:0.5:0>",
    "a cat<lora:fur:-0.5><lora:ink:0.5>",
    "a cat<lora:ink:0.5><lora:fur:-0.5>",
    "a bus",
]
CROWD = [spec(prompt, seed, steps=3 + seed % 4) for seed, prompt in enumerate(PROMPTS)]


def by_hand(job: JobSpec) -> Any:
    """The same image by Euler's rule in float64."""
    asked = networks.parse(job.prompt)
    te = sum(lora.strength for lora in asked.te)
    unet = sum(lora.strength for lora in asked.unet)
    program = compile_program("Euler", job.steps, ALPHAS)
    sigmas = [*(step.sigma for step in program.steps), 0.0]
    generator = torch.Generator().manual_seed(job.seed)
    drawn = torch.randn((4, job.height // 8, job.width // 8), generator=generator)
    x = drawn.double().numpy() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        towards = denoised(x, sigma, mean_of(asked.text) + te + unet)
        away = denoised(x, sigma, mean_of(job.negative_prompt) + te + unet)
        estimate = away + (towards - away) * job.cfg_scale
        x = x + (x - estimate) / sigma * (following - sigma)
    return x.transpose(1, 2, 0)


@pytest.mark.parametrize("job", CROWD, ids=lambda job: job.prompt)
def test_each_side_wears_its_own_strengths(job: JobSpec) -> None:
    euler = job.model_copy(update={"sampler": "Euler"})
    np.testing.assert_allclose(alone(euler), by_hand(euler), rtol=0, atol=2e-4)


def test_jobs_with_and_without_get_what_each_gets_alone() -> None:
    bench = Bench()
    for job in CROWD:
        bench.add(job)
        bench.run(turns=2)
    bench.run()
    for job, made in zip(CROWD, bench.jobs, strict=True):
        np.testing.assert_allclose(made.future.result(0).image, alone(job), rtol=0, atol=1e-5)


def test_equal_sets_share_forwards_whatever_their_order() -> None:
    bench = Bench()
    made = bench.render(CROWD[5], CROWD[6].model_copy(update={"steps": CROWD[5].steps}))
    assert [image.stats.mean_rows for image in made] == [4, 4]
    assert len([side for side, _ in bench.checkpoint.switches if side == "unet"]) == 1


def test_a_set_is_changed_seldom_and_taken_off_in_the_end() -> None:
    bench = Bench()
    jobs = [
        spec(f"a cat{tag}", seed)
        for seed in range(6)
        for tag in ("", "<lora:ink:0:1>", "<lora:fur:0:1>")
    ]
    bench.render(*jobs)
    bench.render(spec())
    changes = [loras for side, loras in bench.checkpoint.switches if side == "unet"]
    assert [[lora.name for lora in loras] for loras in changes] == [["ink"], ["fur"], []]


def test_a_text_is_encoded_again_for_another_strength_only() -> None:
    bench = Bench()
    tags = ["", "<lora:ink:1>", "<lora:ink:0.5:1>", "<lora:ink:1:0.5>", "<lora:ink:0:1>"]
    bench.render(*(spec(f"cat{tag}", cfg_scale=1.0) for tag in tags))
    assert bench.checkpoint.encoded == ["cat"] * 3


def test_a_lora_that_cannot_be_put_on_fails_its_own_jobs() -> None:
    def fault(what: str, seen: Any) -> None:
        if what == "wear" and any(lora.name == "bad" for lora in seen):
            raise CheckpointError("It does not fit.", field="lora", value="bad")

    bench = Bench(FakeCheckpoint("fake", fault=fault))
    bad = [
        spec("a cat<lora:bad>"),
        spec("a cat<lora:bad:0:1>"),
        spec("a cat<lora:ink:1:0><lora:bad:0:1>"),
    ]
    jobs = bench.add(*CROWD[:3], *bad, *CROWD[3:])
    bench.run()
    for job in jobs:
        if "bad" in job.spec.prompt:
            assert isinstance(job.future.exception(0), CheckpointError)
        else:
            image = job.future.result(0).image
            np.testing.assert_allclose(image, alone(job.spec), rtol=0, atol=1e-5)


def test_without_any_loras_here_a_name_is_refused() -> None:
    bench = Bench()
    bench.checkpoint.wear = lambda side, loras, find, spare: find(loras[0].name)  # type: ignore[method-assign]
    (job,) = bench.add(spec("a cat<lora:ink>"))
    bench.run()
    error = job.future.exception(0)
    assert isinstance(error, CheckpointError)
    assert (error.field, error.value) == ("lora", "ink")


def test_changing_sets_is_booked_as_loading() -> None:
    bench = Bench()
    stats = [made.stats for made in bench.render(*CROWD)]
    assert sum(s.gpu_seconds for s in stats) == pytest.approx(
        bench.core.pulse.counters.busy_seconds
    )
    assert all(s.load_seconds for s, job in zip(stats, CROWD, strict=True) if "<" in job.prompt)


def test_after_files_change_loras_are_put_on_anew_and_texts_read_anew() -> None:
    job, files = spec("a cat<lora:ink>", cfg_scale=1.0), [lora_file(size=1)]
    bench = Bench(assets=files)
    bench.render(job)
    bench.render(job)
    assert (bench.checkpoint.encoded, len(bench.checkpoint.switches)) == (["a cat"], 2)
    files[0] = lora_file(size=2)
    bench.render(job)
    assert bench.checkpoint.encoded == ["a cat"] * 2
    assert bench.checkpoint.switches[-1] == ("unet", networks.parse(job.prompt).unet)
    assert ("unet", ()) in bench.checkpoint.switches


@pytest.mark.parametrize(
    ("failures", "idle", "loads"), [(1, 1, 1), (10**9, 1, 2)], ids=["once", "always"]
)
def test_without_memory_to_take_loras_off_nobody_s_job_ends(
    failures: int, idle: int, loads: int
) -> None:
    """Others leave first; a checkpoint that nothing helps is read anew, and wears none."""
    left, files = [0], [lora_file(size=1)]

    def fault(what: str, seen: Any) -> None:
        if what == "wear" and not seen and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError

    bench = Bench(FakeCheckpoint("fake", fault=fault), assets=files)
    jobs = bench.add(*CROWD[:3])
    bench.run(turns=6)
    assert bench.core.jobs
    files[0], left[0], bench.models.idle = lora_file(size=2), failures, idle
    bench.core.turn()
    assert bench.models.idle < idle
    left[0] = 0
    bench.run()
    assert len(bench.models.loads) == loads
    for job in jobs:
        image = job.future.result(0).image
        np.testing.assert_allclose(image, alone(job.spec), rtol=0, atol=1e-5)


def test_a_library_is_looked_through_when_it_changes_and_not_at_every_step(
    tmp_path: Path,
) -> None:
    class Counted(Library):
        looks = 0

        def __iter__(self) -> Iterator[AssetFile]:
            self.looks += 1
            return super().__iter__()

    def looked(steps: int) -> int:
        library = Counted([tmp_path])
        Bench(assets=library).render(spec("a cat", steps=steps))
        return library.looks

    assert looked(50) == looked(2)


def lora_file(size: int) -> AssetFile:
    return AssetFile("ink", Path("ink.safetensors"), None, None, size, kind=LORA)
