"""What the demo checkpoint can draw: emoji names that all three hands have drawn well."""

from __future__ import annotations

FIRST = """
monkey-face gorilla dog-face cat-face cat fox lion tiger-face horse-face unicorn zebra deer cow-face
pig-face mouse-face rabbit-face hamster giraffe elephant bear panda koala frog penguin chicken
baby-chick owl eagle duck flamingo parrot peacock crocodile turtle snake spouting-whale dolphin
fish tropical-fish shark octopus crab lobster snail butterfly honeybee lady-beetle spider sunflower
tulip rose cherry-blossom hibiscus evergreen-tree palm-tree cactus four-leaf-clover maple-leaf
mushroom grapes watermelon tangerine lemon banana pineapple red-apple green-apple pear peach
cherries strawberry blueberries tomato avocado eggplant carrot hot-pepper broccoli bread croissant
pretzel cheese-wedge hamburger french-fries pizza hot-dog taco cooking popcorn ice-cream doughnut
cookie birthday-cake cupcake lollipop honey-pot teapot hot-beverage beer-mug automobile taxi bus
fire-engine tractor bicycle motorcycle locomotive sailboat airplane helicopter rocket house castle
tent volcano sun star cloud rainbow umbrella snowman snowflake fire droplet soccer-ball basketball
tennis wrapped-gift balloon jack-o-lantern christmas-tree guitar trumpet drum crown gem-stone camera
laptop television alarm-clock light-bulb key red-heart skull ghost robot slightly-smiling-face
""".split()  # noqa: SIM905
"""The concepts of the first checkpoint."""

ADDED = """
wolf raccoon polar-bear sloth hedgehog camel rhinoceros hippopotamus chipmunk swan rooster whale
blowfish bug scorpion dog potted-plant deciduous-tree shamrock mango melon kiwi-fruit coconut
ear-of-corn potato onion garlic bell-pepper cucumber pancakes waffle bacon sandwich sushi shortcake
chocolate-bar wine-glass egg ambulance police-car delivery-truck ship flying-saucer motor-scooter
ringed-planet crescent-moon high-voltage ferris-wheel trophy kite teddy-bear violin saxophone
microphone headphone bell pencil scissors hammer magnet telescope candle bomb money-bag locked
envelope t-shirt dress top-hat anchor shield baseball clown-face alien
""".split()  # noqa: SIM905

CONCEPTS = FIRST + ADDED

COLOURS = {
    "red": (222, 40, 45),
    "orange": (250, 130, 20),
    "yellow": (250, 210, 45),
    "green": (50, 165, 70),
    "blue": (50, 105, 225),
    "purple": (140, 60, 190),
    "pink": (248, 130, 180),
}
"""What an object can be recoloured to."""

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (225, 50, 50),
    "green": (60, 170, 75),
    "blue": (60, 110, 225),
    "yellow": (250, 215, 60),
    "pink": (250, 170, 200),
    "gray": (150, 150, 150),
    "orange": (250, 140, 40),
    "purple": (140, 70, 190),
}

STYLES = ("noto style", "flat style", "3d style")

OTHER_NAMES = {
    "automobile": "car",
    "locomotive": "train",
    "slightly-smiling-face": "smiling face",
    "cooking": "fried egg",
    "lady-beetle": "ladybug",
    "spouting-whale": "spouting whale",
    "honeybee": "bee",
    "wrapped-gift": "gift",
    "hot-beverage": "cup of coffee",
    "jack-o-lantern": "halloween pumpkin",
    "doughnut": "donut",
    "gem-stone": "diamond",
    "airplane": "plane",
    "bug": "caterpillar",
    "ear-of-corn": "corn",
    "flying-saucer": "ufo",
    "high-voltage": "lightning bolt",
    "ringed-planet": "planet",
    "crescent-moon": "moon",
    "rhinoceros": "rhino",
    "hippopotamus": "hippo",
    "chipmunk": "squirrel",
    "delivery-truck": "truck",
    "locked": "padlock",
    "headphone": "headphones",
    "motor-scooter": "scooter",
    "deciduous-tree": "tree",
    "tennis": "tennis ball",
    "blowfish": "pufferfish",
    "bell-pepper": "paprika",
    "kiwi-fruit": "kiwi",
    "chocolate-bar": "chocolate",
    "evergreen-tree": "fir tree",
    "red-apple": "apple",
    "red-heart": "heart",
    "ice-cream": "bowl of ice cream",
}
"""A second name that a prompt may use."""

PLURAL = {"cherries", "grapes", "blueberries", "french-fries", "pancakes", "scissors", "headphone"}


def names(concept: str) -> list[str]:
    """What a prompt may call ``concept``, the emoji's own name first."""
    own = concept.replace("-", " ") if concept not in ("t-shirt", "jack-o-lantern") else concept
    found = [own]
    if own.endswith(" face") and concept not in ("slightly-smiling-face",):
        short = own.removesuffix(" face")
        # "dog" and "cat" are concepts of their own, drawn from nose to tail.
        found += [short] if short not in CONCEPTS else []
    if concept in OTHER_NAMES:
        found.append(OTHER_NAMES[concept])
    return found


def nouns(concept: str) -> list[str]:
    """The names without the colour that some emoji carry, to put another colour before them."""
    found = []
    for name in names(concept):
        first, _, rest = name.partition(" ")
        found.append(rest if rest and first in COLOURS else name)
    return list(dict.fromkeys(found))


def colours_of(concept: str) -> list[str]:
    """The colours it can be recoloured to without becoming another concept (a green apple)."""
    # Things named after their colour would make a contradiction or say nothing.
    if concept in ("tangerine", "rainbow", "blueberries"):
        return []
    taken = {name.replace("-", " ") for name in CONCEPTS}
    return [
        colour
        for colour in COLOURS
        if not any(f"{colour} {noun}" in taken for noun in nouns(concept))
    ]
