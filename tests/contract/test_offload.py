"""Weights that stay in host memory: bit-equal images, and how much of them is on the device."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farm.spec.networks import Lora
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.memory.weights import STREAM_WINDOW
from farm.worker.models import offload
from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load, prepare
from farm.worker.models.lora import read_lora
from farm.worker.models.offload import Streamed, streamed, window_bytes
from farm.worker.models.parts import build_on_meta, parts_of
from farm.worker.models.patches import SIDES
from tests.checkpoints import tiny_file
from tests.networks import make_lora

CPU = torch.device("cpu")
PLAIN = replace(by_name("cpu"), dtype="float16")
STREAMED = replace(PLAIN, offload="streamed", weights_bytes=1)
UNIT = 8000


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models in many units, as large ones are."""
    for function in (Streamed.__init__, window_bytes):
        monkeypatch.setitem(function.__kwdefaults__, "unit_bytes", UNIT)  # type: ignore[attr-defined]


def both(folder: Path, family: str = "sdxl") -> tuple[Checkpoint, Checkpoint]:
    file = tiny_file(folder, family, dtype=torch.float16)
    return load(file, PLAIN, CPU), load(file, STREAMED, CPU)


@torch.no_grad()
def computed(checkpoint: Checkpoint, lift: int = 0) -> list[Tensor]:
    text = checkpoint.encode("a red apple, (very:1.2) ripe")
    sizes = None if text.pooled is None else torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with checkpoint.lifted(lift):
        made = [
            checkpoint.predict(x, t, text.tokens, pooled=text.pooled, size_ids=sizes)
            for t in (torch.tensor([900.0]), torch.tensor([10.0]))
        ]
    return [text.tokens, *made, checkpoint.decode(x[0])]


def same(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("lift", [0, 1, 3])
def test_streamed_weights_compute_bit_for_bit_the_same(
    tmp_path: Path, family: str, lift: int
) -> None:
    plain, away = both(tmp_path, family)
    assert streamed(away._unet)
    assert not streamed(plain._unet)
    same(computed(plain, lift), computed(away, lift))
    same(computed(plain), computed(away))


def test_two_units_are_on_the_device_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, away = both(tmp_path)
    stream = streamed(away._unet)
    assert stream
    units = {unit.module: len(unit.host) for unit in stream._units}
    assert len(units) > 10
    seen: list[int] = []
    ahead: list[bool] = []
    fetch = offload._Buffer.fetch

    def counted(buffer: offload._Buffer, unit: offload._Unit, side: None) -> None:
        fetch(buffer, unit, side)
        seen.append(sum(units[module] for module in stream.here))
        ahead.append(unit.weights[0].data_ptr() == unit.at_home[0].data_ptr())

    computed(away)
    stream.rest()
    assert stream.here == []
    monkeypatch.setattr(offload._Buffer, "fetch", counted)
    computed(away)
    assert max(seen) <= stream.window_bytes == 2 * max(units.values())
    assert sum(units.values()) > 3 * stream.window_bytes
    assert all(ahead)  # fetched before it is used


def test_units_hold_all_weights_once(tmp_path: Path) -> None:
    _, away = both(tmp_path)
    stream = streamed(away._unet)
    assert stream
    held = [weight for unit in stream._units for weight in unit.weights]
    assert len(held) == len({id(weight) for weight in held})
    assert {id(weight) for weight in held} == {id(w) for w in away._unet.parameters()}
    for unit in stream._units:
        assert len(unit.host) <= UNIT or len(list(unit.module.children())) == 0


def test_loras_are_put_on_and_taken_off_in_host_memory(tmp_path: Path) -> None:
    plain, away = both(tmp_path)
    before = [weight.clone() for weight in away._unet.parameters()]
    path = tmp_path / "style.safetensors"
    make_lora(path, dict(plain._patches._modules))
    found = read_lora("style", path)
    bare = computed(away)
    for checkpoint in (plain, away):
        for side in SIDES:
            checkpoint.wear(side, (Lora("style", 0.8),), lambda _: found, spare=0)
    worn = computed(away)
    same(computed(plain), worn)
    assert not torch.equal(worn[1], bare[1])
    for side in SIDES:
        away.wear(side, (), lambda _: found, spare=0)
    assert all(map(torch.equal, away._unet.parameters(), before))
    same(computed(away), bare)


def test_an_error_in_the_middle_leaves_the_weights_at_home(tmp_path: Path) -> None:
    plain, away = both(tmp_path)
    expected = computed(plain)
    stream = streamed(away._unet)
    assert stream

    def broken(*_: object) -> None:
        raise RuntimeError("in the middle")

    for unit in (stream._units[3], stream._units[-1]):
        hook = next(unit.module.modules()).register_forward_hook(broken, prepend=True)
        with pytest.raises(RuntimeError, match="in the middle"):
            computed(away)
        hook.remove()
        for each in stream._units:
            for weight, home in zip(each.weights, each.at_home, strict=True):
                assert weight.data_ptr() == home.data_ptr()
        same(computed(away), expected)


def test_it_counts_what_passes_through_the_device(tmp_path: Path) -> None:
    plain, away = both(tmp_path)
    stream = streamed(away._unet)
    assert stream
    vae = sum(weight.nbytes for weight in away._decoder._vae.parameters())
    assert away.bytes == vae + stream.window_bytes < plain.bytes
    file = tiny_file(tmp_path, "sdxl", dtype=torch.float16)
    assert prepare(file, STREAMED, CPU).bytes == away.bytes
    assert prepare(file, PLAIN, CPU).bytes == plain.bytes


def test_a_checkpoint_that_fits_is_not_streamed(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sdxl")
    profile: MemoryProfile = replace(PLAIN, offload="streamed")
    assert not streamed(load(file, profile, CPU)._unet)


def test_it_leaves_for_host_memory_and_returns(tmp_path: Path) -> None:
    plain, away = both(tmp_path)
    away.to_host(())
    away.to_device()
    same(computed(plain), computed(away))


def test_two_forwards_of_other_weights_do_not_mix() -> None:
    """What is on the device from the last forward may be old by the next one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    stream = Streamed(model, CPU, unit_bytes=100)
    x = torch.ones(1, 4)
    model(x)
    for weight in model.parameters():
        weight.zero_()
    assert not model(x).any()
    assert len(stream._units) == 2


def test_memory_is_given_back_at_once(tmp_path: Path) -> None:
    _, away = both(tmp_path)
    computed(away)
    stream = weakref.ref(streamed(away._unet))  # type: ignore[arg-type]
    gc.disable()
    try:
        del away
        assert stream() is None
    finally:
        gc.enable()


def test_window_is_known_before_there_are_weights() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 20)).requires_grad_(False)

    with torch.device("meta"):
        expected = window_bytes(build(), 4)
    assert expected == Streamed(build(), CPU).window_bytes


@pytest.mark.parametrize("last", [True, False])
def test_convolutions_lie_as_the_profile_says(tmp_path: Path, *, last: bool) -> None:
    file = tiny_file(tmp_path, "sd15")
    checkpoint = load(file, replace(by_name("cpu"), channels_last=last), CPU)
    for model in (checkpoint._unet, checkpoint._decoder._vae):
        kernels = [weight for weight in model.parameters() if weight.shape[2:] == (3, 3)]
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last) == last for weight in kernels
        )
        assert kernels


def test_a_full_size_unet_passes_through_as_planned() -> None:
    """Shapes alone, on ``meta``: every unit is called once, and together they are all of it."""
    part = next(part for part in parts_of("sdxl") if part.name == "unet")
    unet: Any = build_on_meta(part, BUNDLES / "sdxl")
    units = list(offload._divided(unet, offload.UNIT_BYTES // 2))
    called: Counter[nn.Module] = Counter()
    for unit in units:
        unit.register_forward_pre_hook(lambda module, _: called.update([module]))
    with torch.no_grad(), torch.device("meta"):
        told = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        text = torch.empty(1, 77, 2048)
        unet(torch.empty(1, 4, 16, 16), torch.empty(1), text, added_cond_kwargs=told)
    assert called == Counter(units)
    assert sum(weight.numel() for unit in units for weight in unit.parameters()) == sum(
        weight.numel() for weight in unet.parameters()
    )
    assert window_bytes(unet, 2, unit_bytes=offload.UNIT_BYTES) <= STREAM_WINDOW


def test_each_unit_is_copied_once_a_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, away = both(tmp_path)
    computed(away)
    stream = streamed(away._unet)
    assert stream
    for text in away._text._models:
        assert not next(iter(streamed(text).here), None)  # type: ignore[union-attr]
    fetched: list[offload._Unit] = []
    fetch = offload._Buffer.fetch

    def counted(buffer: offload._Buffer, unit: offload._Unit, side: None) -> None:
        fetch(buffer, unit, side)
        fetched.append(unit)

    monkeypatch.setattr(offload._Buffer, "fetch", counted)
    text = away.encode("a red apple")
    fetched.clear()
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    x = torch.zeros(1, 4, 8, 8)
    away.predict(x, torch.ones(1), text.tokens, pooled=text.pooled, size_ids=sizes)
    assert Counter(fetched) == Counter(stream._units)
