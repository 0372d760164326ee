"""What the engine is measured at."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from farm.spec.job import JobSpec

SUBJECTS = ("apple", "lion", "frog", "house", "penguin", "car", "tree", "robot")
COLOURS = ("red", "blue", "green", "yellow")
TINY = {"tiny-sd15": "sd15", "tiny-sdxl": "sdxl"}
"""Random models that compute next to nothing, and what they are built like."""
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M Karras")
HIRES = {"hires_scale": 2.0, "denoising_strength": 0.5, "steps": 10}
"""Of which diffusers takes as many steps as Farm: half of twice as many."""


@dataclass(frozen=True)
class Workload:
    """Jobs of one kind, on one checkpoint of one family."""

    name: str
    family: str
    jobs: tuple[JobSpec, ...]

    @property
    def alike(self) -> bool:
        """Whether one call of a pipeline can make them all."""
        first = self.jobs[0]
        return all(
            (job.size, job.width, job.height, job.steps, job.sampler, job.cfg_scale)
            == (first.size, first.width, first.height, first.steps, first.sampler, first.cfg_scale)
            for job in self.jobs
        )


def jobs(family: str, count: int, side: int, **fields: Any) -> tuple[JobSpec, ...]:
    """Jobs with prompts and seeds of their own."""
    common = {"steps": 20, "sampler": "Euler", "cfg_scale": 7.0, **fields}
    return tuple(
        JobSpec(
            checkpoint=family,
            prompt=f"a {COLOURS[n // 8 % 4]} {SUBJECTS[n % 8]}",
            negative_prompt="blurry" if common["cfg_scale"] != 1 else "",
            width=side,
            height=side,
            seed=n,
            **common,
        )
        for n in range(count)
    )


def mixed(family: str, count: int, side: int, *, one_size: bool = False) -> tuple[JobSpec, ...]:
    """Different samplers, steps and guidance, upright, square and lying."""
    draw, low = random.Random(1), side * 3 // 4
    sizes = ((side, side),) if one_size else ((side, side), (low, side), (side, low))
    return tuple(
        job.model_copy(
            update={
                "sampler": draw.choice(SAMPLERS),
                "steps": draw.choice((8, 12, 16, 20)),
                "cfg_scale": draw.choice((1.0, 3.0, 7.0)),
                "width": width,
                "height": height,
            }
        )
        for job, (width, height) in zip(jobs(family, count, side), cycle(sizes), strict=False)
    )


def turbo(name: str, family: str, count: int, side: int) -> list[Workload]:
    """One to four steps without guidance, as few-step models are used."""
    return [
        Workload(
            f"{name}, {steps} step{'s' * (steps > 1)}, {count} jobs",
            family,
            jobs(family, count, side, cfg_scale=1.0, steps=steps),
        )
        for steps in (1, 2, 3, 4)
    ]


def workloads(device: str) -> list[Workload]:
    """What is measured on a CPU, and on a card."""
    if device == "cpu":
        return [
            Workload("demo 128, 1 job", "demo", jobs("demo", 1, 128, cfg_scale=3.0)),
            Workload("demo 128, 16 jobs", "demo", jobs("demo", 16, 128, cfg_scale=3.0)),
            Workload("demo mixed, 16 jobs", "demo", mixed("demo", 16, 128, one_size=True)),
            Workload("demo mixed sizes, 16 jobs", "demo", mixed("demo", 16, 128)),
            *turbo("demo turbo 128", "demo", 16, 128),
            Workload("demo hires 128 to 256, 4 jobs", "demo", jobs("demo", 4, 128, **HIRES)),
            *(
                Workload(f"{name} 64, {count} job{'s' * (count > 1)}", name, jobs(name, count, 64))
                for name in TINY
                for count in (1, 16)
            ),
        ]
    return [
        Workload("SDXL 512, 16 jobs", "sdxl", jobs("sdxl", 16, 512)),
        Workload("SDXL 1024, 8 jobs", "sdxl", jobs("sdxl", 8, 1024)),
        Workload("SDXL 1024, 1 job", "sdxl", jobs("sdxl", 1, 1024)),
        *turbo("SDXL turbo 512", "sdxl", 32, 512),
        Workload("SDXL mixed, 16 jobs", "sdxl", mixed("sdxl", 16, 512, one_size=True)),
        Workload("SDXL mixed sizes, 16 jobs", "sdxl", mixed("sdxl", 16, 512)),
        Workload("SDXL hires 512 to 1024, 8 jobs", "sdxl", jobs("sdxl", 8, 512, **HIRES)),
        Workload("SD1.5 512, 32 jobs", "sd15", jobs("sd15", 32, 512)),
        Workload("SD1.5 512, 1 job", "sd15", jobs("sd15", 1, 512)),
    ]
