"""What a loaded checkpoint computes equals diffusers' own pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from farm.worker.memory.profiles import by_name
from farm.worker.models.catalogue import builtin_folder, scan
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from farm.worker.models.text import Words
from tests.checkpoints import diffusers_pipeline, tiny_file

CPU = torch.device("cpu")
FP32 = by_name("cpu")


class Pair(NamedTuple):
    """The same weights, loaded by us and by diffusers."""

    ours: Checkpoint
    theirs: Any
    side: int

    @property
    def xl(self) -> bool:
        return self.ours.family.startswith("sdxl")


@pytest.fixture(scope="module", params=["sd15", "sd2", "sdxl", "sdxl-refiner", "demo"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "demo":
        file = scan([builtin_folder()])[0]
    else:
        file = tiny_file(tmp_path_factory.mktemp("tiny"), request.param)
    assert file.native_side
    return Pair(load(file, FP32, CPU), diffusers_pipeline(file.path), file.native_side // 8)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def their_encoding(pair: Pair, prompt: str, negative: str | None) -> list[Tensor | None]:
    """Prompt, negative prompt, and both pooled, as the pipeline makes them."""
    options = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    given = pair.theirs.encode_prompt(prompt=prompt, negative_prompt=negative, **options)
    return [*given, None, None][:4]


def same(ours: Tensor | None, theirs: Tensor | None) -> None:
    if theirs is None:
        assert ours is None
    else:
        assert ours is not None
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


PROMPTS = ["a red apple", "", "Ünïcode 😀, 12 cats: 1.2", "word " * 75]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_encoded_as_the_pipeline_does(pair: Pair, prompt: str) -> None:
    tokens, negative, pooled, negative_pooled = their_encoding(pair, prompt, "blurry, ugly")
    ours, against = pair.ours.encode(prompt), pair.ours.encode("blurry, ugly", negative=True)
    same(ours.tokens, tokens)
    same(ours.pooled, pooled)
    same(against.tokens, negative)
    same(against.pooled, negative_pooled)


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_an_empty_negative_prompt(pair: Pair, blank: str) -> None:
    # For SDXL the pipeline zeroes what is not given; webui does so for an empty text too.
    _, negative, _, negative_pooled = their_encoding(pair, "a", None if pair.xl else "")
    ours = pair.ours.encode(blank, negative=True)
    same(ours.tokens, negative)
    same(ours.pooled, negative_pooled)
    assert bool((ours.tokens == 0).all()) == pair.xl


def test_only_a_refiner_is_told_how_good_the_picture_is(pair: Pair) -> None:
    scores = [pair.ours.encode(text, negative=sign).score for text in "a" for sign in (False, True)]
    scores.append(pair.ours.encode("", negative=True).score)
    assert scores == ([6.0, 2.5, 2.5] if pair.ours.family == "sdxl-refiner" else [None] * 3)


def test_different_prompts_differ(pair: Pair) -> None:
    one, other = pair.ours.encode("a red apple"), pair.ours.encode("a blue car")
    assert (one.tokens - other.tokens).abs().max() > 0.1


def test_long_prompts_are_their_chunks_in_a_row(pair: Pair) -> None:
    chunks = ["red " * 75, "blue " * 75, "green"]
    whole = pair.ours.encode(" ".join(chunks))
    parts = [pair.ours.encode(chunk) for chunk in chunks]
    assert whole.tokens.shape[1] == 3 * 77
    same(whole.tokens, torch.cat([part.tokens for part in parts], dim=1))
    same(whole.pooled, parts[0].pooled)


TOGETHER = [
    Words(("a red apple",)),
    Words(("", "a (blue:1.3) car", "red " * 80)),
    Words(("",), negative=True),
    Words(("(blurry:0.7), ugly",), negative=True),
    Words(("word " * 160,)),
]


def test_prompts_encoded_together_are_what_each_is_alone(pair: Pair) -> None:
    made = pair.ours.encode_together(TOGETHER)
    for words, one in zip(TOGETHER, made, strict=True):
        alone = pair.ours.encode(*words.texts, negative=words.negative)
        same(one.tokens, alone.tokens)
        same(one.pooled, alone.pooled)
        assert one.score == alone.score
        assert one.tokens.untyped_storage().nbytes() == one.tokens.nbytes


@pytest.mark.parametrize(
    ("words", "blocks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)]
)
def test_blocks_by_length(pair: Pair, words: int, blocks: int) -> None:
    assert pair.ours.encode("word " * words).tokens.shape[1] == 77 * blocks


def test_rows_at_fractional_timesteps_equal_the_unet_alone(pair: Pair) -> None:
    t = torch.tensor([999.0, 500.25, 3.5])
    x = noise(3, 4, pair.side, pair.side)
    texts = [pair.ours.encode(text) for text in ("a red apple", "a car", "")]
    tokens = torch.cat([text.tokens for text in texts])
    sizes = torch.tensor([[4091.0, 96, 0, 8, 128, 96]] * 3)  # no float16 is 4091
    extra: dict[str, Any] = {}
    if pair.ours.family == "sdxl-refiner":
        sizes = sizes[:, :5]
    if pair.xl:
        extra = {"pooled": torch.cat([text.pooled for text in texts]), "size_ids": sizes}  # type: ignore[misc]
    together = pair.ours.predict(x, t, tokens, **extra)
    assert (together.dtype, together.shape) == (torch.float32, x.shape)
    for row in range(3):
        added = {"text_embeds": texts[row].pooled, "time_ids": sizes[row : row + 1]}
        alone = pair.theirs.unet(
            x[row : row + 1],
            t[row],
            encoder_hidden_states=texts[row].tokens,
            added_cond_kwargs=added if extra else None,
        ).sample
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_pixels_equal_the_pipelines_vae(pair: Pair) -> None:
    latent = noise(4, pair.side, pair.side + 2, seed=1)
    vae = pair.theirs.vae
    image = vae.decode(latent[None] / vae.config.scaling_factor).sample[0]
    expected = ((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(1, 2, 0)
    pixels = pair.ours.decode(latent)
    assert (pixels.shape, pixels.dtype) == (expected.shape, torch.uint8)
    assert pixels.is_contiguous()
    difference = (pixels.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    assert expected.unique().numel() > 10


def test_large_pictures_are_decoded_in_tiles_of_512(tmp_path: Path) -> None:
    profile = replace(FP32, vae_tile_over=512 * 512)
    prepared = load(tiny_file(tmp_path, "sdxl"), profile, CPU)
    seen: list[tuple[int, ...]] = []
    vae = prepared._decoder._vae
    vae.decoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:]))
    )
    assert prepared.decode(noise(4, 64, 64)).shape == (512, 512, 3)
    assert seen == [(64, 64)]
    seen.clear()
    assert prepared.decode(noise(4, 64, 96)).shape == (512, 768, 3)
    assert len(seen) > 1
    assert max(max(side) for side in seen) <= 64


def test_the_demo_is_not_black_in_any_precision() -> None:
    file = scan([builtin_folder()])[0]
    for dtype in ("float32", "bfloat16"):
        checkpoint = load(file, replace(FP32, dtype=dtype), CPU)
        pixels = checkpoint.decode(noise(4, 16, 16) * 0.6)
        assert pixels.float().std() > 20


def test_an_offloading_profile_computes_the_same(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sdxl")
    plain = load(file, FP32, CPU).encode("a red apple")
    offloaded = load(file, replace(FP32, offload="model"), CPU).encode("a red apple")
    same(offloaded.tokens, plain.tokens)
