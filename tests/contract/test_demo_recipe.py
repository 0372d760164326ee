"""The demo checkpoint's recipe: scenes, captions, resuming and the way to the file and back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.captions import caption, thing
from demo.concepts import BACKGROUNDS, COLOURS, CONCEPTS, colours_of
from demo.course import Course
from demo.export import export
from demo.models import Models
from demo.prompts import backgrounds, pairs, recoloured
from demo.scenes import Painter, Scene, random_scene
from farm.worker.models.catalogue import builtin_folder

WEIGHTS = builtin_folder() / "demo.safetensors"


@pytest.fixture(scope="module")
def painter() -> Painter:
    """Of two concepts in three hands: a white disk and a dark square, on nothing."""
    down, right = np.mgrid[:128, :128]
    disk = (down - 64) ** 2 + (right - 64) ** 2 < 50**2
    square = (abs(down - 64) < 40) & (abs(right - 64) < 40)
    pictures = np.zeros((2, 3, 128, 128, 4), np.uint8)
    pictures[0, :, disk] = 255
    pictures[1, :, square] = (40, 30, 20, 255)
    return Painter(pictures)


@pytest.fixture(scope="module")
def models() -> Models:
    models = Models()
    models.load_file(WEIGHTS)
    return models


def named(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour) / 127.5 - 1


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("concept", [0, 1])
def test_a_recoloured_object_has_the_colour_itself(
    painter: Painter, concept: int, colour: str
) -> None:
    painted = painter.paint(Scene((concept,), 0, "white", colour))
    torch.testing.assert_close(painted[:, 64, 64], named(COLOURS[colour]), rtol=0, atol=0.02)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_is_what_was_said(painter: Painter, background: str) -> None:
    painted = painter.paint(Scene((0, 1), 2, background))
    expected = named(BACKGROUNDS[background])
    torch.testing.assert_close(painted[:, 2, 2], expected, rtol=0, atol=0.02)


def test_the_first_of_a_pair_stands_left(painter: Painter) -> None:
    painted = painter.paint(Scene((1, 0), 0, "black"))
    assert painted[:, 64, 96].min() > 0.99
    assert -0.9 < painted[0, 64, 32] < 0


def test_training_shows_every_kind_of_scene_and_every_concept() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(6000)]
    assert {scene.kind for scene in scenes} == {"plain", "recoloured", "pair"}
    assert len({scene.concepts[0] for scene in scenes}) == len(CONCEPTS) > 200
    assert all(scene.colour != scene.background for scene in scenes)
    share = np.mean([random_scene(rng, 4).concepts[0] >= 147 for _ in range(2000)])
    assert share > 0.5


def test_a_colour_never_makes_another_concept() -> None:
    assert "green" not in colours_of("red-apple")
    assert "red" not in colours_of("green-apple")
    assert "blue" in colours_of("red-apple")


def test_a_caption_names_what_is_there() -> None:
    cat, dog = CONCEPTS.index("cat"), CONCEPTS.index("dog")
    for seed in range(50):
        said = caption(Scene((cat, dog), 1, "pink"), random.Random(seed))
        assert said.index("cat") < said.index("dog")
        assert "pink background" in said
    assert thing("red-apple", "blue") == "a blue apple"
    assert thing("elephant") == "an elephant"
    assert thing("scissors") == "scissors"


def test_every_word_of_a_caption_is_in_the_shortened_vocabulary(models: Models) -> None:
    rng = random.Random(1)
    said = [caption(random_scene(rng), rng) for _ in range(2000)]
    said += [asked.prompt for asked in [*backgrounds(), *recoloured(), *pairs()]]
    rows = models.words.read(said, pad=0)
    lengths = [len(models.words.tokens(text)) for text in said]
    assert (rows != 0).sum(1).tolist() == lengths
    assert torch.equal(models.words.read(["RED Apple"], 0), models.words.read(["red apple"], 0))


def test_the_exported_file_is_the_one_that_was_read(models: Models, tmp_path: Path) -> None:
    export(models, tmp_path / "again.safetensors")
    again, original = load_file(tmp_path / "again.safetensors"), load_file(WEIGHTS)
    assert again.keys() == original.keys()
    tokens = {name for name in again if "token_embedding" in name}
    for name in again.keys() - tokens:
        assert torch.equal(again[name], original[name]), name
    for name in tokens:
        known = models.words.ids
        assert torch.equal(again[name][known], original[name][known]), name
        others = again[name].abs().sum(1) == 0
        assert int(others.sum()) == len(others) - len(known)


def course(folder: Path, minutes: float) -> tuple[Course, nn.Linear]:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    return Course("line", {"model": model}, folder, minutes=minutes, rate=0.1, slowness=0.9), model


def test_a_killed_course_goes_on_from_its_save(tmp_path: Path) -> None:
    first, model = course(tmp_path, 60)
    saved: dict[str, Tensor] = {}

    class Killed(Exception):
        """Stands for a kill."""

    def losses() -> dict[str, Tensor]:
        if first.step == 30:
            first.save()
            saved.update({name: weight.clone() for name, weight in model.state_dict().items()})
        if first.step == 33:
            raise Killed
        return {"loss": (model(torch.ones(1)) - 5).square().sum()}

    with pytest.raises(Killed):
        first.run(losses)
    again, resumed = course(tmp_path, 60)
    assert again.step == 30
    assert 0 < again.progress < 1
    assert resumed.state_dict() == saved
    shortened, _ = course(tmp_path, 1e-9)
    assert shortened.progress == 1
