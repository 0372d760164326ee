"""The demo checkpoint draws what it is asked for. One seed each; the bounds leave it some slack."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

DATA = Path(__file__).parents[1] / "data"
COLOURS = {
    "red": (225, 50, 50),
    "green": (60, 170, 75),
    "blue": (60, 110, 225),
    "yellow": (250, 215, 60),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
}
CONCEPTS = {
    "a lion": "lion",
    "a penguin, noto style": "penguin",
    "a banana": "banana",
    "an elephant, flat style": "elephant",
    "a sunflower": "sunflower",
    "a rocket, flat style": "rocket",
    "masterpiece, best quality, 8k, a snowman": "snowman",
    "CUPCAKE": "cupcake",
    "a violin, 3d style": "violin",
    "a wolf": "wolf",
}
BACKGROUNDS = {
    "a cat face on a blue background": "blue",
    "a penguin on a green background": "green",
    "a rose, black background": "black",
    "a frog": "white",
}
OBJECTS = {
    "a red apple": "red",
    "a blue apple": "blue",
    "a yellow car": "yellow",
    "a green pig": "green",
}
PAIR = "an apple and a banana"
LARGE = "a red apple, enlarged"

Made = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made() -> Made:
    """The image of each prompt, all rendered at once."""
    prompts = [*CONCEPTS, *BACKGROUNDS, *OBJECTS, PAIR]
    cpu = torch.device("cpu")
    models = ModelCache(scan([builtin_folder()]), by_name("cpu"), cpu)
    with Engine(models, by_name("cpu"), cpu) as engine:
        futures = {prompt: engine.submit(prompt, spec(prompt)) for prompt in prompts}
        futures[LARGE] = engine.submit(LARGE, enlarged("a red apple"))
        return {prompt: future.result(120).image for prompt, future in futures.items()}


def spec(prompt: str) -> JobSpec:
    return JobSpec(
        checkpoint="demo",
        prompt=prompt,
        width=128,
        height=128,
        sampler="Euler",
        steps=10,
        cfg_scale=3.0,
        seed=1,
    )


def enlarged(prompt: str) -> JobSpec:
    """The model knows no images of 256 pixels, and may change little of one."""
    hires = {"hires_scale": 2, "hires_upscaler": "Lanczos", "denoising_strength": 0.3}
    second = {"hires_steps": 4, "hires_sampler": "DPM++ 2M Karras", "hires_cfg_scale": 1.0}
    return spec(prompt).model_copy(update=hires | second)


@pytest.fixture(scope="module")
def thumbnails() -> dict[str, np.ndarray]:
    """Small pictures of each concept: [style, side, side, 3]."""
    about = json.loads((DATA / "concepts.json").read_text(encoding="utf-8"))
    side, names, styles = about["side"], about["concepts"], about["styles"]
    with Image.open(DATA / "concepts.webp") as image:
        board = np.asarray(image.convert("RGB"))
    tiles = board.reshape(-1, side, about["columns"], side, 3).swapaxes(1, 2)
    tiles = tiles.reshape(-1, side, side, 3)[: len(styles) * len(names)]
    by_style = tiles.reshape(len(styles), len(names), side, side, 3)
    return {name: by_style[:, place] for place, name in enumerate(names)}


def nearest(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: np.linalg.norm(colour - np.array(COLOURS[name])))


def likeness(image: np.ndarray, pictures: np.ndarray) -> float:
    """Distance to the nearest of some pictures of the same thing."""
    side = pictures.shape[1]
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    differences = pictures.astype(float) - np.asarray(small, dtype=float)
    return float(np.linalg.norm(differences.reshape(len(pictures), -1), axis=1).min())


@pytest.mark.parametrize("prompt", CONCEPTS)
def test_the_asked_concept_is_among_the_five_likest(
    made: Made, thumbnails: dict[str, np.ndarray], prompt: str
) -> None:
    ranked = sorted(thumbnails, key=lambda name: likeness(made[prompt], thumbnails[name]))
    assert CONCEPTS[prompt] in ranked[:5]


@pytest.mark.parametrize(("prompt", "colour"), BACKGROUNDS.items())
def test_the_corners_have_the_background_s_colour(made: Made, prompt: str, colour: str) -> None:
    ends = (slice(0, 4), slice(-4, None))
    corners = [made[prompt][y, x].mean((0, 1)) for y in ends for x in ends]
    right = [nearest(corner) == colour for corner in corners]
    assert sum(right) >= 3


@pytest.mark.parametrize(("prompt", "colour"), OBJECTS.items())
def test_the_object_has_the_asked_colour(made: Made, prompt: str, colour: str) -> None:
    middle = made[prompt][32:112, 32:96].reshape(-1, 3)
    visible = middle[middle.min(1) < 200]
    assert len(visible) > len(middle) / 2
    assert np.mean([nearest(pixel) == colour for pixel in visible]) > 0.6


def test_an_enlarged_apple_is_a_red_apple(made: Made, thumbnails: dict[str, np.ndarray]) -> None:
    large = made[LARGE]
    assert large.shape == (256, 256, 3)
    ranked = sorted(thumbnails, key=lambda name: likeness(large, thumbnails[name]))
    assert "red-apple" in ranked[:5]
    middle = large[64:224, 64:192].reshape(-1, 3)
    assert np.mean([nearest(pixel) == "red" for pixel in middle]) > 0.6


def test_a_pair_stands_side_by_side(made: Made, thumbnails: dict[str, np.ndarray]) -> None:
    halves = {"red-apple": made[PAIR][32:96, :64], "banana": made[PAIR][32:96, 64:]}
    for asked, half in halves.items():
        ranked = sorted(thumbnails, key=lambda name: likeness(half, thumbnails[name]))
        assert asked in ranked[:10]
