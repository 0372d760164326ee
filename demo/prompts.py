"""The prompts that checkpoints are compared by; the same every time."""

from __future__ import annotations

import random
from itertools import cycle, islice
from typing import NamedTuple

from demo.captions import coloured, thing
from demo.concepts import BACKGROUNDS, COLOURS, CONCEPTS, FIRST, STYLES, colours_of

SIDE_BY_SIDE = [
    "a red apple", "a cat face", "a lion", "a banana", "a car", "a house", "a sunflower",
    "a penguin", "a guitar", "a hamburger", "a pizza", "a robot",
    "a red apple, noto style", "a red apple, flat style", "a red apple, 3d style",
    "a red apple on a blue background", "a cat face on a green background",
    "a penguin on a pink background", "a red heart on a black background",
    "a snowman on a blue background", "an emoji of a strawberry, noto style",
    "a picture of a rocket on a black background", "a fish on a yellow background, 3d style",
    "a butterfly, flat style",
    "a rose", "a frog", "an elephant", "a tiger face", "a bus", "a bicycle", "an airplane",
    "a cactus", "a crown", "a skull", "a soccer ball", "a birthday cake",
    "lion", "RED APPLE", "masterpiece, best quality, 8k, a red apple", "a blue apple",
    "a green car", "a purple cat face", "an orange panda on a blue background", "pink frog",
    "a cat and a dog", "an apple and a banana", "a car next to a house", "a violin",
]  # fmt: skip
"""48 prompts to look at; the last ten ask for what the first checkpoint was never shown."""


class Asked(NamedTuple):
    """A prompt and what a right picture shows."""

    prompt: str
    concepts: tuple[int, ...]
    style: int = 0
    background: str = "white"
    colour: str | None = None


def every_concept(known: int) -> list[Asked]:
    """Each of the first ``known`` concepts in each style, on white."""
    return [
        Asked(f"{thing(CONCEPTS[concept])}, {STYLES[style]}", (concept,), style)
        for style in range(len(STYLES))
        for concept in range(known)
    ]


def backgrounds(count: int = 80) -> list[Asked]:
    """Concepts that all checkpoints know, on each background in turn."""
    rng = random.Random(5)
    found = []
    for background in islice(cycle(BACKGROUNDS), count):
        concept = rng.randrange(len(FIRST))
        prompt = f"{thing(CONCEPTS[concept])} on {coloured(background)}"
        found.append(Asked(prompt, (concept,), background=background))
    return found


def recoloured(count: int = 70) -> list[Asked]:
    """Concepts in a colour that is not theirs, each colour in turn."""
    rng = random.Random(6)
    found: list[Asked] = []
    for colour in islice(cycle(COLOURS), count):
        able = [place for place, name in enumerate(CONCEPTS) if colour in colours_of(name)]
        concept = rng.choice(able)
        found.append(Asked(thing(CONCEPTS[concept], colour), (concept,), colour=colour))
    return found


def pairs(count: int = 40, known: int = len(CONCEPTS)) -> list[Asked]:
    """Two different concepts of the first ``known``, joined by "and"."""
    rng = random.Random(7)
    found = []
    for _ in range(count):
        first, second = rng.sample(range(known), 2)
        prompt = f"{thing(CONCEPTS[first])} and {thing(CONCEPTS[second])}"
        found.append(Asked(prompt, (first, second)))
    return found
