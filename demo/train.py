"""Trains the demo checkpoint: ``python -m demo.train --help``."""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo import autoencoder
from demo.bank import Bank, seeded
from demo.captions import caption
from demo.course import Course, together
from demo.curves import curves
from demo.denoising import EMPTY, losses, sampled
from demo.export import export
from demo.models import Models
from demo.pictures import pictures
from demo.scenes import Painter, random_scene
from demo.sheets import sheet

SEED = 7
DRAWS = 2
"""Noises tried on each caption's picture."""
FRESH = 0.2
"""Scenes encoded anew at each step, as a share of its captions."""
HALVED_UNTIL = 0.6
"""The part of a course after which no pictures of half the size are shown."""
PLANS: dict[str, dict[str, Any]] = {
    "cpu": {"minutes": (25, 35, 60), "pictures": 8, "captions": 16},
    "cuda": {"minutes": (4, 4, 8), "pictures": 64, "captions": 128},
}
"""What a course is like by default, by the type of device; that of a GPU was never measured."""
MEASURED = 512
"""Scenes whose latents are scaled to the wanted spread."""
LOOK = [
    "a red apple", "a cat face", "a lion", "a car", "a house", "a penguin on a pink background",
    "a blue apple", "a purple cat", "a green car", "an orange panda on a blue background",
    "a cat and a dog", "an apple and a banana", "a car next to a house", "a robot and a rose",
    "a wolf", "a trophy", "a violin, 3d style", "masterpiece, best quality, 8k, a red apple",
]  # fmt: skip


def main() -> None:
    """Read the options, train what is not trained yet, and write the checkpoint."""
    options = told()
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    painter = Painter(pictures(options.folder))
    torch.manual_seed(SEED)
    models = Models()
    if options.start_from:
        models.load_file(options.start_from)
    models.to(options.device)
    if not options.start_from:
        copy_pictures(models, painter, options)
        denoise(models, painter, options, pixels=64, minutes=options.minutes[1])
    denoise(models, painter, options, pixels=128, minutes=options.minutes[2])
    export(models.to(torch.device("cpu")), options.folder / "demo.safetensors")
    curves(options.folder)


def copy_pictures(models: Models, painter: Painter, options: argparse.Namespace) -> None:
    """Train the VAE."""
    plan = partial(
        Course,
        "vae",
        {"vae": models.vae},
        options.folder,
        minutes=options.minutes[0],
        rate=1.5e-3,
        slowness=0.998,
    )
    autoencoder.start_plain(models.vae)
    if plan().progress < 1:
        train = partial(autoencoder.train, seed=SEED, batch=options.pictures)
        _learn(lambda _: train(models.vae, painter, plan()), options.device)
    plan().put_averages({"vae": models.vae})
    rng = random.Random(SEED)
    scenes = [random_scene(rng) for _ in range(MEASURED)]
    autoencoder.scale_latents(models.vae, torch.stack([painter.paint(s) for s in scenes]))


def denoise(
    models: Models, painter: Painter, options: argparse.Namespace, *, pixels: int, minutes: float
) -> None:
    """Train UNet and text encoders on pictures of one size; on a CPU by several processes."""
    for module in models.trained().values():
        module.share_memory()  # does nothing on a GPU
    plan = partial(
        Course,
        f"denoise{pixels}",
        models.trained(),
        options.folder,
        minutes=minutes,
        rate=options.rate,
        slowness=0.999,
    )

    def take_part(worker: int) -> None:
        course = plan(leads=worker == 0)
        seed = SEED + 1_000_003 * worker + course.step
        if worker:
            torch.manual_seed(seed)
        draw = seeded(seed + 1, options.emphasis)
        sizes = (pixels, pixels // 2) if options.halved else (pixels,)
        banks = [Bank(models, painter, options.bank, pixels=p, draw=draw) for p in sizes]
        lesson = Lesson(models, banks, random.Random(seed), options)
        look = partial(_look, course, models, pixels)
        course.run(lambda: lesson.losses(course.progress), look)

    if plan().progress < 1:
        _learn(take_part, options.device, options.workers)
    plan().put_averages(models.trained())


def _learn(course: Callable[[int], None], device: torch.device, workers: int = 1) -> None:
    # A GPU is full with one process, and CUDA does not outlive a fork.
    if device.type == "cpu":
        together(course, workers)
    else:
        course(0)


class Lesson:
    """The losses of one step on scenes out of a bank.

    Args:
        banks: of pictures in full size and, where ``options.halved`` is not zero, in half.
    """

    def __init__(
        self, models: Models, banks: list[Bank], rng: random.Random, options: argparse.Namespace
    ) -> None:
        self._models, self._banks, self._rng, self._options = models, banks, rng, options

    def losses(self, progress: float) -> dict[str, Tensor]:
        """``loss`` to follow; the plain error of all and of each kind of scene to look at."""
        # Small pictures teach words at a quarter of the cost; the rest of the course is for detail.
        halved = self._rng.random() < self._options.halved * (1 - progress / HALVED_UNTIL)
        bank = self._banks[1 if halved else 0]
        bank.refresh(max(1, round(FRESH * self._options.captions)))
        scenes, latents = bank.some(self._options.captions, self._rng)
        texts = [
            "" if self._rng.random() < EMPTY else caption(scene, self._rng) for scene in scenes
        ]
        plain, weighted = losses(self._models, latents, texts, DRAWS)
        if halved:
            return {"loss": weighted.mean(), "small": plain.detach().mean()}
        kinds = [scene.kind for scene in scenes] * DRAWS
        found = {"loss": weighted.mean(), "error": plain.detach().mean()}
        for kind in set(kinds):
            chosen = torch.tensor([other == kind for other in kinds])
            found[kind] = plain.detach()[chosen].mean()
        return found


def _look(course: Course, models: Models, pixels: int) -> None:
    # A copy, as other processes go on training the models meanwhile.
    averaged = copy.deepcopy(models)
    course.put_averages(averaged.trained())
    shown = sampled(averaged, LOOK, pixels=pixels)
    sheet(shown, 6).save(course.folder / f"{course.name}-{course.step:06}.png")


def told() -> argparse.Namespace:
    """What was said on the command line, and what the device wants where nothing was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    standard = "cuda" if torch.cuda.is_available() else "cpu"
    add("--folder", type=Path, default=Path("build/demo"), help="of everything that is made")
    add("--device", type=torch.device, default=standard, help="to train on: cpu or cuda")
    add("--start-from", type=Path, help="a checkpoint to go on from; its VAE is kept")
    add(
        "--minutes",
        type=float,
        nargs=3,
        help="of processor time, on a GPU of clock time, for the VAE, for 64 and for 128 pixels; "
        "with --start-from only the last counts",
    )
    add("--rate", type=float, default=1e-3, help="of learning, of UNet and text encoders")
    add("--workers", type=int, default=2, help="processes on a CPU; as many as free cores")
    add("--pictures", type=int, help="in a step of the VAE")
    add("--captions", type=int, help="in a step of one process")
    add("--bank", type=int, default=2500, help="encoded scenes that each process holds")
    add("--halved", type=float, default=0.0, help="share of half-size steps, at first")
    add(
        "--emphasis",
        type=float,
        default=1.0,
        help="how much more often to show the concepts that the first checkpoint lacked",
    )
    parser.set_defaults(**PLANS[standard])  # for --help
    kind = parser.parse_known_args()[0].device.type
    if kind not in PLANS:
        parser.error(f"argument --device: {kind} is none of {', '.join(PLANS)}")
    parser.set_defaults(**PLANS[kind])
    return parser.parse_args()


if __name__ == "__main__":
    main()
