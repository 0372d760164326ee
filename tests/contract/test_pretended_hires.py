"""Both passes of a hires fix on a pretended card: the CPU's pictures, whoever began them."""

from __future__ import annotations

from farm.worker.models.catalogue import AssetFile
from tests.card_bench import CPU, CUDA, PRETENDED, engine, same, spec
from tests.pretended_card import Card

pytestmark = [*PRETENDED]


SWEEP = [
    {"hires_upscaler": upscaler, "denoising_strength": strength, "extra_noise": 0.1}
    for upscaler in ("Latent (bicubic antialiased)", "Lanczos")
    for strength in (0.0, 0.5)
]


def test_a_sweep_is_that_of_a_cpu_and_goes_on_from_what_was_kept(
    card: Card, sd15: AssetFile
) -> None:
    size = {"hires_width": 96, "hires_height": 80, "steps": 3, "strict": True}
    jobs = [spec(sd15, **size, **changes) for changes in SWEEP]
    later = [job.model_copy(update={"hires_steps": 2}) for job in jobs]
    made = {}
    for device in (CUDA, CPU):
        with engine(device, [sd15]) as running:
            futures = [running.submit(f"now {n}", job) for n, job in enumerate(jobs)]
            first = [future.result(120) for future in futures]
            forwards = running.counters.forwards
            futures = [running.submit(f"later {n}", job) for n, job in enumerate(later)]
            made[device] = first + [future.result(120) for future in futures]
            assert running.counters.forwards - forwards <= 2 * 2
    assert same(made[CUDA], made[CPU])
    assert made[CPU][0].image.shape == (80, 96, 3)
