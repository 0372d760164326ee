"""Words for a scene, as people may type them."""

from __future__ import annotations

import random

from demo.concepts import BACKGROUNDS, COLOURS, CONCEPTS, PLURAL, STYLES, names, nouns
from demo.scenes import Scene

OPENINGS = ("a picture of ", "an emoji of ", "a drawing of ")
QUALITY = ("masterpiece", "best quality", "high quality", "highly detailed", "4k", "8k")
JOINTS = (" and ", " and ", " next to ", " beside ", " left of ")
ARTICLE, OPENING, STYLE, BEHIND, BEFORE = 0.6, 0.4, 0.6, 0.12, 0.12
"""How often a caption has an article, an opening, a style, quality words behind or before."""


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many ways to ask for ``scene``."""
    article = rng.random() < ARTICLE
    things = [_thing(concept, scene.colour, article, rng) for concept in scene.concepts]
    text = rng.choice(JOINTS).join(things)
    if rng.random() < OPENING:
        text = rng.choice(OPENINGS) + text
    if scene.background != "white" or rng.random() < 0.3:
        text += rng.choice(
            (f" on {coloured(scene.background)}", f", {scene.background} background")
        )
    if rng.random() < STYLE:
        text += ", " + STYLES[scene.style]
    praise = ", ".join(rng.sample(QUALITY, rng.choice((1, 1, 2, 3))))
    where = rng.random()
    if where < BEHIND:
        return f"{text}, {praise}"
    return f"{praise}, {text}" if where < BEHIND + BEFORE else text


def thing(concept: str, colour: str | None = None) -> str:
    """The plainest way to ask for one object: "a cat", "a blue apple", "grapes"."""
    return _with_article(concept, f"{colour} {nouns(concept)[-1]}" if colour else names(concept)[0])


def coloured(background: str) -> str:
    """ "a blue background"."""
    return f"an {background} background" if background == "orange" else f"a {background} background"


def _thing(concept: int, colour: str | None, article: bool, rng: random.Random) -> str:
    own = CONCEPTS[concept]
    said = f"{colour} {rng.choice(nouns(own))}" if colour else rng.choice(names(own))
    return _with_article(own, said) if article else said


def _with_article(concept: str, said: str) -> str:
    if concept in PLURAL:
        return said
    return f"an {said}" if said[0] in "aeio" or said.startswith("umb") else f"a {said}"


def phrases() -> list[str]:
    """Texts that together hold every word a caption can hold."""
    things = [name for concept in CONCEPTS for name in [*names(concept), *nouns(concept)]]
    words = [*OPENINGS, *QUALITY, *JOINTS, *STYLES, *BACKGROUNDS, *COLOURS]
    return ["a an on background,", *things, *words]
