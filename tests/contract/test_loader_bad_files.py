"""Checkpoints that are incomplete, oddly shaped, or changed under our hands."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models import plan, reader
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.loader import load, prepare
from tests.checkpoints import make_tiny, tiny_file

CPU = torch.device("cpu")
FP32 = by_name("cpu")


@pytest.mark.parametrize(
    ("family", "gone", "named"),
    [
        ("sdxl", "model.diffusion_model.label_emb.0.0.weight", "unet"),
        ("sdxl", "model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "unet"),
        ("sdxl", "model.diffusion_model.output_blocks.1.1.transformer_blocks", "unet"),
        ("sd15", "model.diffusion_model.output_blocks.1.1.conv.bias", "unet"),
        ("sd15", "first_stage_model.decoder.mid.attn_1", "vae"),
        ("sd15", "first_stage_model.encoder.", "vae"),
        ("sd15", "cond_stage_model.transformer.text_model.encoder.layers.1", "text_encoder"),
        ("sdxl", "conditioner.embedders.1.model.text_projection", "text_encoder_2"),
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.3.ln", "text_encoder_2"),
    ],
)
def test_missing_weights_are_named(tmp_path: Path, family: str, gone: str, named: str) -> None:
    path = make_tiny(tmp_path, family)
    weights = load_file(path)
    kept = {name: weight for name, weight in weights.items() if not name.startswith(gone)}
    assert len(kept) < len(weights)
    save_file(kept, path)
    with pytest.raises(CheckpointError) as caught:
        load(scan([tmp_path])[0], FP32, CPU)
    assert f"lacks weights of its {named}: " in caught.value.message
    assert caught.value.remedy


def test_a_long_list_of_missing_weights_is_cut(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    save_file({name: w for name, w in weights.items() if "encoder.down" not in name}, path)
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load(scan([tmp_path])[0], FP32, CPU)


def test_an_unusual_shape_asks_for_its_configs(tmp_path: Path) -> None:
    shutil.copy(builtin_folder() / "demo.safetensors", tmp_path / "odd.safetensors")
    with pytest.raises(
        CheckpointError, match=r"odd\.safetensors lacks weights of its unet"
    ) as caught:
        load(scan([tmp_path])[0], FP32, CPU)
    assert "odd.config/" in str(caught.value.remedy)


def test_one_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    weights["model.diffusion_model.out.2.weight"] = torch.zeros(4, 99, 3, 3)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"unet of unusual shape: conv_out\.weight") as caught:
        load(scan([tmp_path])[0], FP32, CPU)
    assert "tiny-sd15.config/" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("part", "content", "complaint"),
    [
        ("unet", None, "unet lacks its config.json"),
        ("vae", "{", "cannot be read as JSON"),
        ("unet", {"block_out_channels": "many"}, "does not describe a unet"),
        ("vae", {"down_block_types": ["Nonsense"]}, "does not describe a vae"),
        ("text_encoder", {"hidden_size": 17, "num_attention_heads": 2}, "text_encoder"),
    ],
)
def test_broken_configs_are_named(tmp_path: Path, part: str, content: Any, complaint: str) -> None:
    file = tiny_file(tmp_path, "sd15")
    config = file.path.with_suffix(".config") / part / "config.json"
    if content is None:
        config.unlink()
    elif isinstance(content, str):
        config.write_text(content)
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), **content}))
    with pytest.raises(CheckpointError, match=complaint):
        load(file, FP32, CPU)


def test_a_diffusers_folder_without_safetensors(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15", layout="diffusers")
    weights = file.path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"lacks diffusion_pytorch_model\.safetensors"):
        load(file, FP32, CPU)


def test_an_unknown_prediction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'sample'"):
        load(tiny_file(tmp_path, "sd15", prediction="sample"), FP32, CPU)


def test_a_file_listed_as_broken_is_not_opened(tmp_path: Path) -> None:
    file = AssetFile("x", tmp_path / "x.ckpt", None, None, 0, "x.ckpt is a pickle.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load(file, FP32, CPU)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    os.replace(other, path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = [replaced, cut, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_check_and_load(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = tiny_file(tmp_path, "sd15")
    prepared = prepare(file, FP32, CPU)
    change(file.path)
    with pytest.raises(CheckpointError, match="was changed while it was loaded"):
        prepared.load()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parts_before", [1, 3])
def test_changed_while_it_is_read(
    tmp_path: Path,
    change: Callable[[Path], None],
    parts_before: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tiny_file(tmp_path, "sd15")
    read: list[int] = []

    def read_then_change(*args: Any, **options: Any) -> Any:
        tensors = reader.read_tensors(*args, **options)
        read.append(1)
        if len(read) == parts_before:
            change(file.path)
        return tensors

    monkeypatch.setattr(plan, "read_tensors", read_then_change)
    with pytest.raises(CheckpointError, match="was changed while it was loaded"):
        load(file, FP32, CPU)
    assert len(read) == parts_before


def test_cut_in_the_middle_of_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_file(tmp_path, "sd15")
    read = os.preadv

    def cut_first(*args: Any) -> int:
        os.truncate(file.path, 20_000)
        return read(*args)

    monkeypatch.setattr(os, "preadv", cut_first)
    with pytest.raises(CheckpointError, match="was changed while it was loaded"):
        load(file, FP32, CPU)


def test_resident_weights_do_not_depend_on_the_file(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15")
    checkpoint = load(file, FP32, CPU)
    with torch.inference_mode():
        before = checkpoint.encode("a red apple").tokens
        os.truncate(file.path, 0)  # a mapped file would kill the process here
        assert torch.equal(checkpoint.encode("a red apple").tokens, before)


def test_the_cache_with_real_files(tmp_path: Path) -> None:
    good = tiny_file(tmp_path, "sd15")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.path.read_bytes()[:100_000])
    cache = ModelCache(scan([tmp_path]), FP32, CPU)
    with cache.use("tiny-sd15") as checkpoint:
        assert checkpoint.family == "sd15"
    with pytest.raises(CheckpointError, match="cut short"):
        cache.get("bad")
    assert cache.resident == ("tiny-sd15",)
    assert cache.bytes == checkpoint.bytes


def test_evicted_weights_are_freed_at_once(tmp_path: Path) -> None:
    # Without waiting for the collector of cycles: the next checkpoint needs the memory now.
    files = [tiny_file(tmp_path, "sd15"), tiny_file(tmp_path, "sdxl")]
    room = max(prepare(file, FP32, CPU).bytes for file in files)
    cache = ModelCache(files, replace(FP32, weights_bytes=room), CPU)
    freed: list[bool] = []
    gc.collect()
    gc.disable()
    try:
        with cache.use("tiny-sd15") as checkpoint:
            checkpoint.encode("a red apple")
            weakref.finalize(checkpoint, freed.append, True)
        del checkpoint
        cache.get("tiny-sdxl")
        assert freed == [True]
    finally:
        gc.enable()
