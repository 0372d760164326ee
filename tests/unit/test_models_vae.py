"""Which VAE file a checkpoint has beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

import pytest

from farm.errors import CheckpointError
from farm.worker.models.header import Header, TensorEntry
from farm.worker.models.vae import external_vae, has_new_names, lacks_vae, vae_names


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "m.v1.safetensors"


VAES = [Path("VAE/good.safetensors"), Path("VAE/sub/deep.safetensors"), Path("VAE/old.pt")]


def names_vae(checkpoint: Path, name: object) -> None:
    checkpoint.with_name("m.v1.json").write_text(json.dumps({"vae": name, "notes": "nice"}))


@pytest.mark.parametrize("notes", [None, {}, {"vae": ""}, {"vae": "None"}, {"vae": "Automatic"}])
@pytest.mark.parametrize("beside", [True, False])
def test_the_file_beside_it(checkpoint: Path, notes: object, beside: bool) -> None:
    own = checkpoint.with_name("m.v1.vae.safetensors")
    if notes is not None:
        checkpoint.with_name("m.v1.json").write_text(json.dumps(notes))
    checkpoint.with_name("m.vae.safetensors").touch()  # of another checkpoint
    if beside:
        own.touch()
    assert external_vae(checkpoint) == (own if beside else None)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("good.safetensors", "VAE/good.safetensors"),
        ("good", "VAE/good.safetensors"),
        ("deep.safetensors", "VAE/sub/deep.safetensors"),
        ("old.pt", "VAE/old.pt"),  # which the loader then refuses, saying why
    ],
)
def test_the_one_named_in_the_notes_goes_first(checkpoint: Path, name: str, found: str) -> None:
    names_vae(checkpoint, name)
    checkpoint.with_name("m.v1.vae.safetensors").touch()
    assert external_vae(checkpoint, VAES) == Path(found)


def test_one_named_may_lie_beside_the_checkpoint(checkpoint: Path) -> None:
    names_vae(checkpoint, "mine.safetensors")
    beside = checkpoint.with_name("mine.safetensors")
    beside.touch()
    assert external_vae(checkpoint) == beside


@pytest.mark.parametrize("name", ["gone.safetensors", "old", "../VAE/good.safetensors", 7])
def test_one_that_is_not_there_is_named(checkpoint: Path, name: object) -> None:
    names_vae(checkpoint, name)
    with pytest.raises(CheckpointError) as caught:
        external_vae(checkpoint, VAES)
    assert f"m.v1.json asks for the VAE '{name}'" in caught.value.message
    assert "VAE folder" in str(caught.value.remedy)


def test_none_anywhere_says_where_to_put_one(checkpoint: Path) -> None:
    error = lacks_vae(checkpoint)
    assert error.message == "m.v1.safetensors holds no VAE."
    assert "m.v1.vae.safetensors" in str(error.remedy)
    assert "m.v1.json" in str(error.remedy)


def header(*names: str) -> Header:
    entries = {name: TensorEntry("F16", (1,), 0, 2) for name in names}
    return Header(Path("x.safetensors"), MappingProxyType(entries), {}, 0, (0, 0, 0))


@pytest.mark.parametrize(
    ("names", "kept", "new"),
    [
        (("first_stage_model.decoder.a", "loss.b"), ("first_stage_model.decoder.a",), False),
        (("encoder.a", "post_quant_conv.b", "loss.c"), ("encoder.a", "post_quant_conv.b"), False),
        (("model_ema.decoder.a", "decoder.down.0.b"), ("decoder.down.0.b",), False),
        (("encoder.down_blocks.0.a",), ("encoder.down_blocks.0.a",), True),
    ],
)
def test_names_of_vae_files(names: tuple[str, ...], kept: tuple[str, ...], new: bool) -> None:
    assert vae_names(header(*names)) == kept
    assert has_new_names(header(*names)) == new


def test_a_file_that_is_no_vae() -> None:
    with pytest.raises(CheckpointError, match="holds no VAE"):
        vae_names(header("lora_unet.x"))
