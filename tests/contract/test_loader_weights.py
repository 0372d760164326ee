"""Our loader gives every module the very weights that diffusers' own loading gives it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.errors import CheckpointError
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.loader import load, prepare
from farm.worker.models.reader import Readers
from tests.checkpoints import diffusers_pipeline, make_tiny, tiny_file

CPU = torch.device("cpu")
FP32 = by_name("cpu")


def demo(_: Path) -> AssetFile:
    return scan([builtin_folder()])[0]


def tiny(family: str, **options: Any) -> Callable[[Path], AssetFile]:
    return lambda folder: tiny_file(folder, family, **options)


def our_modules(file: AssetFile, profile: MemoryProfile) -> dict[str, torch.nn.Module]:
    return prepare(file, profile, CPU).modules()


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (demo, "float32"),
        (tiny("sd15"), "float32"),
        (tiny("sdxl"), "float32"),
        (tiny("sd15", dtype=torch.float16), "float32"),
        (tiny("sdxl"), "float16"),
        (tiny("sdxl", dtype=torch.bfloat16), "bfloat16"),
        (tiny("sd15", layout="diffusers"), "float32"),
        (tiny("sdxl", layout="diffusers"), "float32"),
        (tiny("sdxl", layout="diffusers", dtype=torch.float16, variant="fp16"), "float16"),
        (tiny("sd2", dtype=torch.float16), "float16"),
        (tiny("sdxl-refiner", dtype=torch.bfloat16), "bfloat16"),
        (tiny("sdxl-refiner", layout="diffusers"), "float32"),
        (tiny("ssd1b"), "float32"),
        (tiny("sdxl", layout="sharded", dtype=torch.float16, variant="fp16"), "float16"),
    ],
)
def test_weights_equal_diffusers_own(
    tmp_path: Path, make: Callable[[Path], AssetFile], dtype: str
) -> None:
    file = make(tmp_path)
    theirs = diffusers_pipeline(file.path, getattr(torch, dtype))
    profile = MemoryProfile(**{**vars(FP32), "dtype": dtype})
    for name, module in our_modules(file, profile).items():
        expected = getattr(theirs, name).state_dict()
        found = module.state_dict()
        assert found.keys() == expected.keys()
        for key, weight in found.items():
            assert weight.dtype == getattr(torch, dtype)
            assert torch.equal(weight, expected[key]), f"{name} {key}"
        assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not module.training


def test_a_turbo_checkpoint_is_sdxl_that_wants_few_steps(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sdxl", name="sd_xl_turbo_tiny")
    assert (file.error, file.family) == (None, "sdxl")
    assert (file.defaults["steps"], file.defaults["cfg_scale"]) == (4, 1.0)
    plain = tiny_file(tmp_path, "sdxl")
    weights = [our_modules(one, FP32)["unet"].state_dict() for one in (file, plain)]
    assert torch.equal(weights[0]["conv_in.weight"], weights[1]["conv_in.weight"])


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_storage_is_widened(tmp_path: Path, storage: torch.dtype) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    name = "model.diffusion_model.out.2.weight"
    assert weights[name].abs().max() > 0
    save_file({key: weight.to(storage) for key, weight in weights.items()}, path)
    file = scan([tmp_path])[0]
    assert str(file.dtype).startswith("F8")
    found = our_modules(file, FP32)["unet"].state_dict()["conv_out.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, weights[name].to(storage).float())


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    checkpoint = load(tiny_file(tmp_path, "sdxl", prediction="v_prediction"), FP32, CPU)
    assert (checkpoint.name, checkpoint.family) == ("tiny-sdxl", "sdxl")
    assert checkpoint.prediction == "v_prediction"
    assert (checkpoint.precision(0), checkpoint.device) == ("float32", CPU)
    assert len(checkpoint.alphas_cumprod) == 1000
    assert checkpoint.load_seconds > 0


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2)])
def test_bytes_are_those_of_the_weights(tmp_path: Path, dtype: str, width: int) -> None:
    file = tiny_file(tmp_path, "sdxl")
    profile = MemoryProfile(**{**vars(FP32), "dtype": dtype})
    prepared = prepare(file, profile, CPU)
    parameters = sum(
        weight.numel() for plan in prepared.plans for weight in plan.module.parameters()
    )
    assert prepared.bytes == parameters * width == load(file, profile, CPU).bytes


def test_attention_names_of_before_diffusers_0_12(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15", layout="diffusers")
    path = file.path / "vae" / "diffusion_pytorch_model.safetensors"
    new = load_file(path)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, weight in new.items():
        former = [name.replace(f".{to}.", f".{was}.") for to, was in old_names.items()]
        old[next((renamed for renamed in former if renamed != name), name)] = weight
    assert old.keys() != new.keys()
    save_file(old, path)
    found = our_modules(file, FP32)["vae"].state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in new.items())


def test_clip_names_of_before_transformers_5_6_and_the_oldest_single_files(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    weights = load_file(path)
    oldest = {name.replace(".text_model.", "."): weight for name, weight in weights.items()}
    assert oldest.keys() != weights.keys()
    save_file(oldest, path)
    found = our_modules(scan([tmp_path])[0], FP32)["text_encoder"].state_dict()
    assert torch.equal(
        found["final_layer_norm.weight"],
        weights["cond_stage_model.transformer.text_model.final_layer_norm.weight"],
    )


def test_what_is_no_weight_is_skipped(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "sd15")
    extras = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.zeros(1000),
        "optimizer.state.0": torch.zeros(4),
    }
    save_file({**load_file(path), **extras}, path)
    modules = our_modules(scan([tmp_path])[0], FP32)
    assert "position_ids" not in str(modules["text_encoder"].state_dict().keys())


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_no_network_is_ever_touched(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    (tmp_path / "folder").mkdir()
    files = [
        tiny_file(tmp_path, family),
        demo(tmp_path),
        tiny_file(tmp_path / "folder", family, layout="diffusers"),
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for file in files:
        checkpoint = load(file, FP32, CPU)
        checkpoint.encode("a red apple")


def test_a_damaged_checkpoint_is_known_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny(tmp_path, "sdxl")
    weights = load_file(path)
    del weights["model.diffusion_model.out.2.weight"]
    save_file(weights, path)
    monkeypatch.setattr(Readers, "begin", None)
    with pytest.raises(CheckpointError, match="lacks 1 weight of its unet"):
        prepare(scan([tmp_path])[0], FP32, CPU)
