"""Checkpoints that are incomplete, oddly shaped, or changed under our hands."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.loader import load, prepare
from tests.checkpoints import make_tiny, tiny_file
from tests.trap import Trap

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
        ("sd2", "cond_stage_model.model.transformer.resblocks.1.mlp", "text_encoder"),
        ("sdxl-refiner", "conditioner.embedders.0.model.positional", "text_encoder_2"),
        ("ssd1b", "model.diffusion_model.middle_block.0", "unet"),
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
    assert re.search(rf"lacks (\d+ )?weights? of its {named}: ", caught.value.message)
    assert caught.value.remedy


def test_missing_weights_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    kept = {name: weight for name, weight in weights.items() if "first_stage" not in name}
    kept["first_stage_model.quant_conv.bias"] = weights["first_stage_model.quant_conv.bias"]
    save_file(kept, path)
    with pytest.raises(CheckpointError) as caught:
        load(scan([tmp_path])[0], FP32, CPU)
    gone = sum("first_stage" in name for name in weights) - 1
    assert f"lacks {gone} weights of its vae: " in caught.value.message
    assert caught.value.message.endswith(f" and {gone - 4} more.")
    assert caught.value.message.count(", ") == 3


def test_an_unusual_shape_asks_for_its_configs(tmp_path: Path) -> None:
    shutil.copy(builtin_folder() / "demo.safetensors", tmp_path / "odd.safetensors")
    with pytest.raises(
        CheckpointError, match=r"odd\.safetensors lacks \d+ weights of its unet"
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


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.diffusion_model.out.2.weight", 0),
        ("model.diffusion_model.out.0.weight", 1),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", 777),
        ("first_stage_model.decoder.conv_in.weight", -1),
        ("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", -1),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", -1),
    ],
)
def test_a_single_value_that_is_not_finite_is_found(
    tmp_path: Path, name: str, place: int, value: float
) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    broken = weights[name].clone()
    broken.view(-1)[place] = value
    save_file({**weights, name: broken}, tmp_path / "bad.safetensors")
    shutil.copytree(path.with_suffix(".config"), tmp_path / "bad.config")
    cache = ModelCache(scan([tmp_path]), FP32, CPU)
    kept = cache.get("tiny-sd15")
    with pytest.raises(CheckpointError) as caught:
        cache.get("bad")
    told = f"bad.safetensors holds NaN or infinity in float32: 1 values, of {name} (1)."
    assert caught.value.message == told
    assert cache.resident == ("tiny-sd15",)
    assert cache.get("tiny-sd15") is kept
    assert caught.value.remedy


def test_broken_values_are_counted_and_the_first_weights_are_listed(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    unet = [name for name in weights if name.startswith("model.diffusion_model.")][:6]
    for name in unet:
        weights[name].view(-1)[:2] = torch.nan
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"12 values, of .+ \(2\), .+ and 2 more\."):
        load(scan([tmp_path])[0], FP32, CPU)


def test_weights_too_large_for_the_precision_are_found(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    weights["model.diffusion_model.out.2.weight"] *= 1e9
    save_file(weights, path)
    file = scan([tmp_path])[0]
    assert load(file, FP32, CPU).family == "sd15"
    with pytest.raises(CheckpointError, match=r"in float16: .*\.out\.2\.weight"):
        load(file, replace(FP32, dtype="float16"), CPU)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": Trap(mark)}, path)
    with pytest.raises(CheckpointError, match="can run code") as caught:
        prepare(AssetFile("model", path, None, None, 0), FP32, CPU)
    assert "Convert it" in str(caught.value.remedy)
    (tmp_path / "disguised.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        prepare(AssetFile("d", tmp_path / "disguised.safetensors", None, None, 0), FP32, CPU)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert mark.exists()


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}, "leads out of its folder"),
        ({"weight_map": {"conv_in.weight": "gone.safetensors"}}, "does not exist"),
        ({"weight_map": {"odd": "whole.safetensors"}}, "lacks odd, which"),
        ({"weight_map": {"conv_in.weight": "whole.safetensors"}}, r"lacks \d+ weights of its unet"),
    ],
)
def test_broken_shards_are_named(tmp_path: Path, index: Any, complaint: str) -> None:
    file = tiny_file(tmp_path, "sd15", layout="diffusers")
    whole = file.path / "unet" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("whole.safetensors"))
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=complaint):
        load(file, FP32, CPU)


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
@pytest.mark.parametrize("reads_before", [1, 40])
def test_changed_while_it_is_read(
    tmp_path: Path,
    change: Callable[[Path], None],
    reads_before: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tiny_file(tmp_path, "sd15")
    counts, read = count(1), os.preadv

    def read_then_change(*args: Any) -> int:
        done = read(*args)
        if next(counts) == reads_before:
            change(file.path)
        return done

    monkeypatch.setattr(os, "preadv", read_then_change)
    with pytest.raises(CheckpointError, match="was changed while it was loaded"):
        load(file, FP32, CPU)
    assert next(counts) > reads_before


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_the_old_one_is_back_when_the_new_one_changed_while_it_was_read(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one of them, so the old one had left."""
    for seed, name in enumerate(("old", "new")):
        make_tiny(tmp_path, "sd15", seed=seed, name=name)
    room = prepare(scan([tmp_path])[0], FP32, CPU).bytes
    cache = ModelCache(scan([tmp_path]), replace(FP32, weights_bytes=room), CPU, host_bytes=room)
    before = cache.get("old").encode("a red apple").tokens
    counts, read = count(1), os.preadv

    def read_then_change(*args: Any) -> int:
        done = read(*args)
        if next(counts) == 1:  # by one of the threads that read
            change(tmp_path / "new.safetensors")
        return done

    monkeypatch.setattr(os, "preadv", read_then_change)
    with pytest.raises(CheckpointError, match="was changed while it was loaded"):
        cache.get("new")
    assert cache.resident == ("old",)
    assert torch.equal(cache.get("old").encode("a red apple").tokens, before)
    assert cache.statistics.disk_loads == 1


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
