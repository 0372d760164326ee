"""The demo checkpoint's training on a pretended card: the weights of a CPU, bit for bit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo import autoencoder, train
from demo.concepts import CONCEPTS, STYLES
from demo.denoising import sampled
from demo.models import Models
from demo.scenes import Painter
from farm.worker.models.catalogue import builtin_folder
from tests.card_bench import CUDA, PRETENDED
from tests.pretended_card import Card, pretended

pytestmark = [*PRETENDED]
WEIGHTS = builtin_folder() / "demo.safetensors"
FIRST_LAYERS = (
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.",
    "conditioner.embedders.1.model.transformer.resblocks.0.",
)

Weights = dict[str, Tensor]


def backward(loss: Tensor) -> None:
    """As ``Tensor.backward``, whose engine asks CUDA itself for streams, and there is no CUDA."""
    wanted: Counter[Any] = Counter()
    found = [loss.grad_fn]
    for node in found:
        following = {after for after, _ in node.next_functions if after is not None}
        found += [after for after in following if after not in wanted]
        wanted.update(after for after, _ in node.next_functions if after is not None)
    sums: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = sums.pop(node, {})
        if hasattr(node, "variable"):
            node.variable.grad = given[0]
            continue
        made = node(*(given.get(place) for place in range(len(node._input_metadata))))
        every = made if isinstance(made, tuple) else (made,)
        for (after, place), gradient in zip(node.next_functions, every, strict=True):
            if after is None:
                continue
            if gradient is not None:
                own = gradient.sum_to_size(after._input_metadata[place].shape)
                so_far = sums.setdefault(after, {})
                so_far[place] = so_far[place] + own if place in so_far else own
            wanted[after] -= 1
            if not wanted[after]:
                ready.append(after)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A pretended card, on which nothing may have raced in the end."""
    # What is composed of other operators has gradients only as those have.
    monkeypatch.setattr("tests.pretended_kernels.COMPOSED", ("convolution",))
    with pretended() as card, sdpa_kernel(SDPBackend.MATH):
        yield card
    assert card.races == []


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a stage, of few pictures; no processes; gradients without CUDA."""
    ticks = itertools.count()
    clock = SimpleNamespace(process_time=lambda: next(ticks), monotonic=lambda: next(ticks))
    sizes = {"minutes": (0.01, 0.01, 0.01), "pictures": 2, "captions": 2}
    monkeypatch.setattr("demo.course.time", clock)
    monkeypatch.setattr("demo.course.LOG_STEPS", 1)
    monkeypatch.setattr("demo.train.PLANS", {"cpu": sizes, "cuda": sizes})
    monkeypatch.setattr("demo.train.MEASURED", 2)
    monkeypatch.setattr("demo.train.pictures", lambda _: drawn())
    monkeypatch.setattr("demo.train.curves", lambda _: None)
    monkeypatch.setattr("demo.train.together", lambda work, workers: work(0))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr(Tensor, "backward", backward)


def drawn() -> np.ndarray:
    """For every concept the same disk in all three hands."""
    down, right = np.mgrid[:128, :128]
    disk = ((down - 64) ** 2 + (right - 64) ** 2 < 50**2)[..., None]
    picture = np.where(disk, (200, 120, 90, 255), 0).astype(np.uint8)
    return np.tile(picture, (len(CONCEPTS), len(STYLES), 1, 1, 1))


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n].cpu()) for n in one)


def share_changed(before: Weights, after: Weights, start: str = "") -> float:
    """Of the weights whose names have this start."""
    names = [name for name in before if name.startswith(start)]
    return float(np.mean([not torch.equal(before[name], after[name]) for name in names]))


def test_the_vae_learns_on_a_card_as_on_a_cpu(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vaes = {}
    for device in ("cuda", "cpu"):
        command = f"train --device {device} --folder {tmp_path}"
        monkeypatch.setattr("sys.argv", command.split())
        torch.manual_seed(train.SEED)
        models = Models().to(torch.device(device))
        train.copy_pictures(models, Painter(drawn()), train.told())
        vaes[device] = models.vae.state_dict()
        (tmp_path / "vae.pt").unlink()  # a save to go on from
    assert same(vaes["cpu"], vaes["cuda"])
    assert all(weight.is_cuda for weight in vaes["cuda"].values())
    torch.manual_seed(train.SEED)
    fresh = Models().vae
    autoencoder.start_plain(fresh)
    assert share_changed(fresh.state_dict(), vaes["cpu"]) > 0.3


def test_what_a_card_learns_is_exported_as_from_a_cpu(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for device in ("cuda", "cpu"):
        folder = tmp_path / device
        command = f"train --device {device} --folder {folder} --rate 0.1 --bank 2 --start-from"
        monkeypatch.setattr("sys.argv", [*command.split(), str(WEIGHTS)])
        train.main()
        files.append(load_file(folder / "demo.safetensors"))
    assert same(*files)
    shipped = load_file(WEIGHTS)
    for part in ("model.diffusion_model.", *FIRST_LAYERS):
        assert share_changed(shipped, files[0], part) > 0.9, part
    assert share_changed(shipped, files[0], "first_stage_model.") == 0
    logs = [(tmp_path / d / "denoise128.csv").read_text() for d in ("cuda", "cpu")]
    assert logs[0] == logs[1]


def test_a_sheet_drawn_on_a_card_is_a_cpu_s(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models()
    nn.init.normal_(models.unet.conv_out.weight)
    monkeypatch.setattr("demo.denoising.DRAWN_IN", 2)
    there = sampled(models, ["a red apple"], pixels=32)
    assert torch.equal(sampled(models.to(CUDA), ["a red apple"], pixels=32), there)
