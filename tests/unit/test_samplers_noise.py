"""Where noise comes from: known answers, and webui's ways of mixing it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from farm.spec.sampling import NoiseOptions
from farm.worker.samplers import compile_program
from farm.worker.samplers.brownian import POOL, BrownianPath, spawned
from farm.worker.samplers.halving import Halving
from farm.worker.samplers.noise import ImageNoise, slerp
from farm.worker.samplers.philox import normal, philox
from farm.worker.samplers.program import FRESH, Draw
from tests.fake_models import ALPHAS

VECTORS = np.load(Path(__file__).parents[1] / "contract" / "vectors" / "torchsde.npz")
SHAPE = (4, 8, 6)
LEVELS = (0.03, 14.6)


NOWHERE = Halving(*LEVELS, [])


def image(
    seed: int = 5,
    shape: tuple[int, int, int] = SHAPE,
    halving: Halving = NOWHERE,
    **options: Any,
) -> ImageNoise:
    return ImageNoise(shape, seed, NoiseOptions(**options), halving)


def path(
    low: float, high: float, *asked: tuple[float, float], seed: int, shape: tuple[int, ...]
) -> BrownianPath:
    return BrownianPath(
        Halving(low, high, asked), seed=seed, noise=lambda seed: randn(seed, *shape).numpy()
    )


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_answers_as_random123_says(counter: str, key: str, expected: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    made = random123([int(word, 16) for word in counter.split()], [low, high])
    assert [f"{word:08x}" for word in made] == expected.split()


def random123(words: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as its authors write it down."""
    a, b, c, d = words
    for _ in range(10):
        first, third = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = third >> 32 ^ b ^ key[0], third & 0xFFFFFFFF
        c, d = first >> 32 ^ d ^ key[1], first & 0xFFFFFFFF
        key = [
            (word + k) & 0xFFFFFFFF for word, k in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
    return [a, b, c, d]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.integers(0, 2**64 - 1),
)
def test_philox_makes_the_first_two_words_of_every_stream(
    call: int, streams: list[int], seed: int
) -> None:
    made = philox(call, np.array(streams, dtype=np.uint64), seed)
    for number, stream in enumerate(streams):
        whole = random123([call, 0, stream, 0], [seed & 0xFFFFFFFF, seed >> 32])
        assert [int(words[number]) for words in made] == whole[:2]


def test_nv_noise_is_what_a_card_draws() -> None:
    # torch.manual_seed(0); torch.randn(12, device="cuda"). A card's sine is good to 2e-7 or so.
    card = [
        -0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564,
        -0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497,
    ]  # fmt: skip
    np.testing.assert_allclose(normal(0, 0, 12), card, rtol=0, atol=1e-6)


def test_nv_noise_is_normal_and_depends_on_seed_call_and_place() -> None:
    numbers = normal(2**40 + 1, 3, 100_000)
    assert numbers.dtype == torch.float32
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01
    assert torch.equal(numbers[:100], normal(2**40 + 1, 3, 100))
    for other in (normal(1, 3, 100), normal(2**40 + 1, 4, 100)):
        assert not torch.isin(numbers[:100], other).any()


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 40)), max_size=5),
)
def test_spawned_seeds_are_numpy_s(entropy: int, keys: list[tuple[int, int]]) -> None:
    parent = np.random.SeedSequence(entropy, pool_size=POOL)
    children = [np.random.SeedSequence(entropy, spawn_key=key, pool_size=POOL) for key in keys]
    words = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    made = spawned(int(parent.pool[0]), words[:, 0], words[:, 1])
    assert made.tolist() == [child.generate_state(1)[0] for child in children]


@pytest.mark.parametrize("case", VECTORS.files)
def test_the_brownian_path_is_torchsde_s(case: str) -> None:
    _, seed, *times = case.split("/")
    low, high, start, end = map(float, times)
    theirs = VECTORS[case]
    ours = path(low, high, (start, end), seed=int(seed), shape=theirs.shape)
    np.testing.assert_allclose(ours.increment(), theirs, rtol=1e-6, atol=1e-6)


def recursive(low: float, high: float, seed: int, asked: tuple[float, float]) -> Any:
    """How far a path leads, as torchsde finds it: one half after the other, from the top, in
    float32."""
    sequence = np.random.SeedSequence(seed, pool_size=POOL)

    def within(depth: int, place: int, since: float, until: float, whole: Any) -> list[Any]:
        if asked[0] <= since and until <= asked[1]:
            return [whole]
        if until <= asked[0] or asked[1] <= since:
            return []
        middle = round((until + since) / 2, 6)
        key = np.random.SeedSequence(seed, spawn_key=(place, depth), pool_size=POOL)
        share = 1 / (until - since)
        left = randn(int(key.generate_state(1)[0]), *SHAPE).numpy()
        left *= ((middle - since) * (until - middle) * share) ** 0.5
        left += whole * (middle - since) * share
        return [
            *within(depth + 1, 2 * place, since, middle, left),
            *within(depth + 1, 2 * place + 1, middle, until, whole - left),
        ]

    whole = randn(int(sequence.generate_state(1)[0]), *SHAPE).numpy() * (high - low) ** 0.5
    return sum(within(0, 0, low, high, whole), start=np.float32(0))


@pytest.mark.parametrize("name", ["DPM++ 2M SDE Karras", "DPM++ SDE", "DPM++ 3M SDE Exponential"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_steps_in_a_row_get_the_very_bits_that_each_would_get_alone(name: str, steps: int) -> None:
    program = compile_program(name, steps, ALPHAS)
    noise = image(seed=9, halving=program.halving)
    low, high = (round(level, 6) for level in program.levels)
    for step in program.steps:
        if step.draw and step.draw.between:
            sigma, following = step.draw.between
            led = recursive(low, high, 9, (round(following, 6), round(sigma, 6)))
            alone = led * (-1 / (sigma - following) ** 0.5)
            assert np.array_equal(noise.draw(step.draw).numpy(), alone)


def test_a_brownian_path_is_one_path_in_whatever_order_it_is_asked() -> None:
    times = [0.0, 0.3, 1.7, 5.0, 8.0]
    spans, shape = list(pairwise(times)), (1000,)
    forth = path(0.0, 8.0, *spans, seed=3, shape=shape)
    back = path(0.0, 8.0, *reversed(spans), seed=3, shape=shape)
    parts = [forth.increment() for _ in spans]
    for (a, b), part in reversed(list(zip(spans, parts, strict=True))):
        assert np.array_equal(back.increment(), part)
        assert part.var() == pytest.approx(b - a, rel=0.2)
    whole = path(0.0, 8.0, (0.0, 8.0), (2.0, 2.0), seed=3, shape=shape)
    np.testing.assert_allclose(sum(parts), whole.increment(), rtol=1e-5, atol=1e-5)
    assert not whole.increment().any()


def test_the_way_down_a_brownian_path_takes_few_draws_and_keeps_little() -> None:
    drawn: list[int] = []

    def noise(seed: int) -> Any:
        drawn.append(seed)
        return randn(seed, 4).numpy()

    times = [16.0 * 0.93**step for step in range(100)]
    asked = [(start, end) for end, start in pairwise(times)]
    way = BrownianPath(Halving(0.0, 16.0, asked), seed=3, noise=noise)
    for _ in asked:
        way.increment()
        assert len(way._pieces) < 20
    # At most one for each halving from 16 down to a millionth, and most of them known before.
    assert len(drawn) < 20 * len(times)
    assert len(set(drawn)) == len(drawn)
    assert not way._pieces


def test_noise_on_the_way_down_is_the_path_backwards_at_variance_1() -> None:
    noise = image(shape=(4, 32, 32), halving=Halving(*LEVELS, [(4.0, 9.0)]))
    way = path(*LEVELS, (4.0, 9.0), seed=5, shape=(4, 32, 32))
    drawn = noise.draw(Draw((9.0, 4.0)))
    torch.testing.assert_close(drawn, torch.from_numpy(-way.increment() / 5**0.5))
    assert drawn.std().item() == pytest.approx(1, rel=0.05)


def test_the_first_noise_and_then_fresh_noise_come_from_one_generator() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    noise = image()
    made = [noise.first, noise.draw(FRESH), noise.draw(FRESH)]
    assert all(map(torch.equal, made, expected))
    nv = image(rng="NV")
    count = 4 * 8 * 6
    for call, drawn in enumerate((nv.first, nv.draw(FRESH))):
        assert torch.equal(drawn.flatten(), normal(5, call, count))


def test_the_seed_delta_changes_all_noise_but_the_first_and_the_path() -> None:
    plain, shifted = image(), image(eta_noise_seed_delta=31337)
    assert torch.equal(plain.first, shifted.first)
    assert torch.equal(shifted.draw(FRESH), randn(5 + 31337, *SHAPE))
    halving, way = Halving(*LEVELS, [(4.0, 9.0)]), Draw((9.0, 4.0))
    plain, shifted = (image(halving=halving, eta_noise_seed_delta=delta) for delta in (0, 31337))
    assert torch.equal(plain.draw(way), shifted.draw(way))
    assert image(0, eta_noise_seed_delta=-5, rng="NV").draw(FRESH).isfinite().all()


def test_a_variation_turns_the_noise_towards_another_seed_s() -> None:
    start, end = randn(5, *SHAPE), randn(6, *SHAPE)
    for strength, expected in ((0.0, start), (1.0, end)):
        made = image(variation_seed=6, variation_strength=strength).first
        torch.testing.assert_close(made, expected)
    half = image(variation_seed=6, variation_strength=0.5).first
    # A column of a channel is a vector: between two of length 1 lies one of length 1.
    first, last = (v / v.norm(dim=1, keepdim=True) for v in (start, end))
    halfway = slerp(first, last, 0.5)
    torch.testing.assert_close(halfway.norm(dim=1), torch.ones(4, 6))
    torch.testing.assert_close((halfway * first).sum(1), (halfway * last).sum(1))
    assert 0.9 < half.std() < 1.1
    # The generator goes on as if there were no variation.
    assert torch.equal(
        image(variation_seed=6, variation_strength=0.5).draw(FRESH), image().draw(FRESH)
    )


def test_noises_that_hardly_differ_are_mixed_in_the_right_order() -> None:
    start = randn(1, *SHAPE)
    end = start * 1.001
    torch.testing.assert_close(slerp(start, end, 0.25), start * 1.00025)


@pytest.mark.parametrize(
    ("size", "base", "part"),
    [
        # (from height, from width), where it goes in an 8 x 6 latent, and what of it
        ((32, 32), (slice(2, 6), slice(1, 5)), (slice(0, 4), slice(0, 4))),
        ((96, 48), (slice(0, 8), slice(0, 6)), (slice(2, 10), slice(0, 6))),
        ((64, 24), (slice(0, 8), slice(1, 4)), (slice(0, 8), slice(0, 3))),
        # An odd difference: as in webui one row of the base stays.
        ((72, 48), (slice(0, 7), slice(0, 6)), (slice(1, 8), slice(0, 6))),
    ],
)
def test_a_resized_seed_keeps_its_noise_in_the_middle(
    size: tuple[int, int], base: tuple[slice, slice], part: tuple[slice, slice]
) -> None:
    height, width = size
    noise = image(seed_resize_from_height=height, seed_resize_from_width=width)
    whole, old = randn(5, *SHAPE), randn(5, 4, height // 8, width // 8)
    expected = whole.clone()
    expected[:, base[0], base[1]] = old[:, part[0], part[1]]
    assert torch.equal(noise.first, expected)
    # The rest went through the generator, as the first noise always does.
    assert torch.equal(noise.draw(FRESH), image().draw(FRESH))
