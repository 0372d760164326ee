"""The whole engine on a pretended card: the CPU's pictures, bit for bit, and nothing it would die
of on a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from farm.spec.job import JobSpec
from farm.worker.engine import reports
from farm.worker.engine.requests import Begin, Denoise, Edit, Made, Recipe
from farm.worker.memory.meter import Meter
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.library import Library
from tests.card_bench import CPU, CROWD, CUDA, PLAIN, PRETENDED, engine, rendered, same, spec
from tests.checkpoints import make_tiny, make_vae, tiny_file
from tests.contract.test_overflows import HALF, UNET_IN, VAE_IN, cache, planted, times
from tests.contract.test_overflows import job as hot_job
from tests.encores import encore
from tests.networks import make_embedding, make_lora, make_tiny_decoder
from tests.pretended_card import Card

pytestmark = [*PRETENDED]


def test_memory_is_read_before_anything_else_was_done_on_the_card(card: Card) -> None:
    reading = Meter(CUDA).sample()  # as a worker does first of all
    assert (reading.active, reading.reserved, reading.system_total) == (0, 0, card.total)


def test_a_crowd_of_samplers_and_prompts_makes_the_pictures_of_a_cpu(
    card: Card, sd15: AssetFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DPM adaptive takes 27 calls otherwise.
    monkeypatch.setattr("farm.worker.samplers.dpm_adaptive.FIRST_LENGTH", 2.0)
    monkeypatch.setattr("farm.worker.engine.adaptive.RELATIVE", 1.0)
    crowd = [spec(sd15, **{"steps": 2, **changes}) for changes in CROWD]
    here, there = (rendered(engine(device, [sd15]), *crowd) for device in (CUDA, CPU))
    assert same(here, there)
    assert here[0].stats.memory.active > 0
    assert here[-1].stats.forwards <= 12


def test_weights_are_on_the_card_and_are_the_files(card: Card, sd15: AssetFile) -> None:
    here = ModelCache([sd15], PLAIN, CUDA).get(sd15.name)
    there = ModelCache([sd15], PLAIN, CPU).get(sd15.name)
    assert here.bytes == there.bytes > 0
    for ours, theirs in zip(here.weights, there.weights, strict=True):
        for name, weight in ours.named_parameters():
            assert weight.is_cuda
            assert torch.equal(weight.cpu(), theirs.get_parameter(name))


def again(job: JobSpec) -> Recipe:
    """Denoised once more from the middle of the schedule, shown the picture it made so far."""

    def more(request: Denoise, made: Made[Any]) -> Denoise:
        edit = Edit(made, 1.5) if "picture" in job.prompt else None
        return replace(request, begin=Begin(made, 1), edit=edit)

    return encore(job, more)


@pytest.mark.parametrize("channels", [8, 9])
def test_from_the_middle_of_the_schedule_and_with_a_picture_to_edit(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", again)
    file = tiny_file(tmp_path, "sd15", channels=channels)
    words = ["a picture", "a cat"] if channels == 8 else ["a cat"]
    jobs = [spec(file, word, seed=place, steps=2) for place, word in enumerate(words)]
    assert same(*(rendered(engine(device, [file]), *jobs) for device in (CUDA, CPU)))


def test_loras_embeddings_a_vae_of_its_own_and_previews(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
    path = make_tiny(tmp_path, "sd15")
    make_vae(path.with_name("tiny-sd15.vae.safetensors"), "bare")
    for folder in ("Lora", "embeddings", "VAE-approx"):
        (tmp_path / folder).mkdir()
    library = Library([tmp_path])
    modules = dict(ModelCache(library, PLAIN, CPU).get("tiny-sd15")._patches._modules)
    make_lora(tmp_path / "Lora" / "ink.safetensors", modules, alpha=1.0, size=0.2)
    make_embedding(tmp_path / "embeddings" / "fur.safetensors", "webui", (16,))
    library.scan()
    file = next(each for each in library if each.name == "tiny-sd15")
    jobs = [spec(file, "fur <lora:ink:0.7>", steps=2), spec(file, "(a:1.2) cat", steps=1)]
    seen: list[Tensor] = []

    def made(device: torch.device, profile: MemoryProfile, *jobs: JobSpec) -> Any:
        watching = engine(
            device,
            library,
            profile,
            watched=lambda _: True,
            on_preview=lambda *told: seen.append(told[3]),
        )
        return rendered(watching, *jobs)

    assert same(made(CUDA, PLAIN, *jobs), made(CPU, PLAIN, *jobs))
    assert {tuple(each.shape) for each in seen} == {(8, 8, 3)}
    seen.clear()
    make_tiny_decoder(tmp_path / "VAE-approx" / "taesd_decoder.safetensors", "original")
    library.scan()
    taesd = replace(PLAIN, vae="taesd")
    assert same(made(CUDA, taesd, jobs[1]), made(CPU, taesd, jobs[1]))
    half = len(seen) // 2
    assert {tuple(each.shape) for each in seen} == {(64, 64, 3)}
    assert all(map(torch.equal, seen[:half], seen[half:]))


@pytest.mark.parametrize("overflowing", [UNET_IN, VAE_IN])
def test_what_overflows_climbs_to_a_higher_precision(
    card: Card, tmp_path: Path, overflowing: str
) -> None:
    planted(tmp_path, "hot", times(overflowing, 3e4))
    files = [file for file in cache(tmp_path, HALF)._tiers._files if file.name == "hot"]
    card_s = replace(by_name("24gb"), buckets=HALF.buckets)
    made = [
        rendered(engine(device, files, profile), hot_job("hot", 2, steps=1))
        for device, profile in ((CUDA, card_s), (CPU, HALF))
    ]
    assert same(*made)
    assert made[0][0].stats.precision == ("bfloat16" if overflowing == UNET_IN else None)
