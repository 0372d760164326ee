"""Checkpoints with a VAE from another file, and models that do not say what they predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models import loader
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.kinds import CHECKPOINT
from farm.worker.models.loader import Prepared, prepare
from farm.worker.models.prediction import measured_prediction
from farm.worker.models.text import TextEncoding
from tests.checkpoints import make_tiny, make_vae, tiny_file

CPU = torch.device("cpu")
FP32 = by_name("cpu")
NAMINGS = ["prefixed", "bare", "diffusers"]


def vae_of(prepared: Prepared) -> dict[str, torch.Tensor]:
    return prepared.modules()["vae"].state_dict()


def wanted(path: Path) -> dict[str, torch.Tensor]:
    """The state of a file of :func:`make_vae` in diffusers' names."""
    return load_file(make_vae(path.with_name("again.safetensors"), "diffusers"))


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("with_vae", [False, True])
def test_the_vae_beside_a_checkpoint_is_used(tmp_path: Path, naming: str, with_vae: bool) -> None:
    path = make_vae(tmp_path / "tiny-sd15.vae.safetensors", naming)
    file = tiny_file(tmp_path, "sd15", with_vae=with_vae)
    assert equal(vae_of(prepare(file, FP32, CPU)), wanted(path))


@pytest.mark.parametrize("layout", ["single", "diffusers"])
def test_a_given_vae_goes_before_all_others(tmp_path: Path, layout: str) -> None:
    file = tiny_file(tmp_path, "sdxl", layout=layout)
    make_vae(tmp_path / "tiny-sdxl.vae.safetensors", "bare", seed=7)
    path = make_vae(tmp_path / "given.safetensors", "prefixed")
    assert equal(vae_of(prepare(file, FP32, CPU, vae=path)), wanted(path))


def test_the_vae_named_in_the_notes_is_used(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15")
    (tmp_path / "tiny-sd15.json").write_text(json.dumps({"vae": "mine"}))
    path = make_vae(tmp_path / "mine.safetensors", "bare")
    assert equal(vae_of(prepare(file, FP32, CPU)), wanted(path))


def test_without_any_vae_the_error_says_where_to_put_one(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd2", with_vae=False)
    with pytest.raises(CheckpointError, match=r"tiny-sd2\.safetensors holds no VAE") as caught:
        prepare(file, FP32, CPU)
    assert "tiny-sd2.vae.safetensors" in str(caught.value)


def test_a_vae_of_another_shape_is_named_by_its_own_file(tmp_path: Path) -> None:
    path = make_vae(tmp_path / "tiny-sd15.vae.safetensors", "bare")
    file = tiny_file(tmp_path, "sd15", with_vae=False)
    weights = load_file(path)
    weights["decoder.conv_in.weight"] = torch.zeros(16, 16, 3, 3)
    save_file(weights, path)
    with pytest.raises(
        CheckpointError, match=r"tiny-sd15\.vae\.safetensors has a vae of"
    ) as caught:
        prepare(file, FP32, CPU)
    assert caught.value.remedy == "Give a VAE made for sd15."


def test_a_vae_that_changes_during_the_load_is_noticed(tmp_path: Path) -> None:
    path = make_vae(tmp_path / "tiny-sd15.vae.safetensors", "bare")
    file = tiny_file(tmp_path, "sd15", with_vae=False)
    prepared = prepare(file, FP32, CPU)
    make_vae(path, "bare", seed=8)
    with pytest.raises(CheckpointError, match=r"tiny-sd15\.vae\.safetensors was changed"):
        prepared.load()


def test_a_checkpoint_without_vae_decodes_with_its_neighbour(tmp_path: Path) -> None:
    make_tiny(tmp_path, "sdxl-refiner", with_vae=False)
    make_vae(tmp_path / "tiny-sdxl-refiner.vae.safetensors", "diffusers")
    files = [file for file in scan([tmp_path]) if file.kind == CHECKPOINT]
    assert [file.error for file in files] == [None]
    checkpoint = ModelCache(files, FP32, CPU).get("tiny-sdxl-refiner")
    assert checkpoint.decode(torch.zeros(4, 8, 8)).shape == (64, 64, 3)


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_cache_finds_the_vae_of_the_vae_folder(tmp_path: Path, naming: str) -> None:
    checkpoints, vaes = tmp_path / "Stable-diffusion", tmp_path / "VAE"
    checkpoints.mkdir()
    vaes.mkdir()
    make_tiny(checkpoints, "sd15", with_vae=False)
    (checkpoints / "tiny-sd15.json").write_text(json.dumps({"vae": "mine.safetensors"}))
    path = make_vae(vaes / "mine.safetensors", naming)
    cache = ModelCache(scan([tmp_path]), FP32, CPU)
    assert equal(cache.get("tiny-sd15")._decoder._vae.state_dict(), wanted(path))


def silent(tmp_path: Path, family: str, **options: Any) -> AssetFile:
    """A checkpoint whose configs do not say what it predicts."""
    file = tiny_file(tmp_path, family, **options)
    config = file.path.with_suffix(".config") / "scheduler" / "scheduler_config.json"
    facts = json.loads(config.read_text())
    del facts["prediction_type"]
    config.write_text(json.dumps(facts))
    return file


@pytest.mark.parametrize("answer", ["epsilon", "v_prediction"])
def test_an_sd2_model_that_says_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(loader, "measured_prediction", lambda checkpoint: answer)
    prepared = prepare(silent(tmp_path, "sd2"), FP32, CPU)
    assert prepared.prediction is None
    assert prepared.load().prediction == answer


class Demo:
    """The demo checkpoint, a trained one, with its noise turned into velocity if so asked."""

    device = CPU

    def __init__(self, prediction: str) -> None:
        self.checkpoint = prepare(
            next(file for file in scan([builtin_folder()]) if file.name == "demo"), FP32, CPU
        ).load()
        self.alphas_cumprod = self.checkpoint.alphas_cumprod
        self.prediction = prediction

    def encode(self, text: str) -> TextEncoding:
        self.text = self.checkpoint.encode(text)
        return self.text

    def predict(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        noise = self.checkpoint.predict(x, t, tokens, pooled=self.text.pooled, size_ids=sizes)
        signal = self.alphas_cumprod[-1]
        velocity = (noise - (1 - signal) ** 0.5 * x) / signal**0.5
        return noise if self.prediction == "epsilon" else velocity


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_trained_model_answers_right(prediction: str) -> None:
    assert measured_prediction(Demo(prediction)) == prediction  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "yaml", "prediction"),
    [
        ({}, None, "epsilon"),
        ({"extras": {"v_pred": torch.zeros(0)}}, None, "v_prediction"),
        ({"metadata": {"modelspec.prediction_type": "v"}}, None, "v_prediction"),
        ({"prediction": "v_prediction"}, None, "v_prediction"),
        ({}, "model: {params: {parameterization: v}}", "v_prediction"),
        ({"extras": {"v_pred": torch.zeros(0)}}, "model: {params: {}}", "epsilon"),
    ],
)
def test_what_a_model_predicts(
    tmp_path: Path, options: dict[str, Any], yaml: str | None, prediction: str
) -> None:
    file = tiny_file(tmp_path, "sd15", **options)
    if yaml:
        file.path.with_suffix(".yaml").write_text(yaml)
    assert prepare(file, FP32, CPU).prediction == prediction


def test_zero_terminal_snr_reaches_the_schedule(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    prepared = prepare(tiny_file(tmp_path, "sdxl", extras=marks), FP32, CPU)
    assert prepared.prediction == "v_prediction"
    assert prepared.alphas_cumprod[-1] == 2**-24
