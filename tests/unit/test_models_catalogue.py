"""scan: what people see when they ask which checkpoints there are."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from farm.worker.models.catalogue import AssetFile, builtin_folder, config_folder, scan
from tests.trap import Trap

DEMO = builtin_folder() / "demo.safetensors"


def copy_demo(folder: Path, name: str, *, configs: bool = True) -> Path:
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(DEMO, path) if os.stat(folder).st_dev == os.stat(DEMO).st_dev else shutil.copy(
        DEMO, path
    )
    if configs:
        shutil.copytree(builtin_folder() / "demo.config", path.with_suffix(".config"))
    return path


def only(files: list[AssetFile]) -> AssetFile:
    assert len(files) == 1, files
    return files[0]


def test_the_builtin_demo() -> None:
    demo = only(scan([builtin_folder()]))
    assert (demo.name, demo.family, demo.native_side, demo.error) == ("demo", "sdxl", 128, None)
    assert demo.bytes == DEMO.stat().st_size <= 25e6, "it ships with the package"
    assert demo.defaults == {"width": 128, "height": 128, "cfg_scale": 3.0, "steps": 20}


def test_names_are_paths_without_suffix(tmp_path: Path) -> None:
    copy_demo(tmp_path, "flat")
    copy_demo(tmp_path, "anime/v1.5/deep")
    assert [file.name for file in scan([tmp_path])] == ["anime/v1.5/deep", "flat"]


def test_without_own_configs_the_family_says_the_size(tmp_path: Path) -> None:
    copy_demo(tmp_path, "m", configs=False)
    file = only(scan([tmp_path]))
    assert file.native_side == 1024
    assert file.defaults == {"width": 1024, "height": 1024, "cfg_scale": 7.0, "steps": 20}
    assert config_folder(file.path, "sdxl").parts[-2:] == ("bundles", "sdxl")


def test_a_sidecar_sets_defaults_and_keeps_its_other_notes(tmp_path: Path) -> None:
    path = copy_demo(tmp_path, "m")
    notes = {"description": "nice", "activation text": "x", "steps": 8, "sampler": "Euler"}
    path.with_suffix(".json").write_text(json.dumps(notes))
    defaults = only(scan([tmp_path])).defaults
    assert (defaults["steps"], defaults["sampler"], defaults["width"]) == (8, "Euler", 128)
    assert "description" not in defaults


@pytest.mark.parametrize(
    ("sidecar", "complaint"),
    [
        ("{", "m.json cannot be read as JSON"),
        ("[]", "m.json is not a JSON table"),
        ('{"width": "big"}', "'big' for width"),
        ('{"steps": 2.5}', "2.5 for steps"),
        ('{"steps": true}', "True for steps"),
        ('{"sampler": 3}', "3 for sampler"),
    ],
)
def test_a_broken_sidecar_is_reported(tmp_path: Path, sidecar: str, complaint: str) -> None:
    copy_demo(tmp_path, "m").with_suffix(".json").write_text(sidecar)
    assert complaint in str(only(scan([tmp_path])).error)


def test_broken_files_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(DEMO.read_bytes()[:1_000_000])
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    (tmp_path / "readme.txt").write_text("no checkpoint")

    errors = {file.name: str(file.error) for file in scan([tmp_path])}

    assert errors.keys() == {"cut", "empty", "page", "old.ckpt"}
    assert "cut short" in errors["cut"]
    assert "is empty" in errors["empty"]
    assert "not a safetensors file" in errors["page"]
    assert "can run code" in errors["old.ckpt"]
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_its_conversion_does_not_hide_it(tmp_path: Path) -> None:
    copy_demo(tmp_path, "m")
    (tmp_path / "m.ckpt").write_bytes(b"old")
    errors = {file.name: file.error for file in scan([tmp_path])}
    assert errors["m"] is None
    assert errors["m.ckpt"] is not None


def test_links_within_the_folder_work_and_links_out_of_it_do_not(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "elsewhere"
    copy_demo(inside, "real")
    shutil.copytree(inside / "real.config", inside / "alias.config")
    (inside / "alias.safetensors").symlink_to("real.safetensors")
    (inside / "escape.safetensors").symlink_to(copy_demo(outside, "secret"))
    (inside / "escape-folder").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "dangling.safetensors").symlink_to(inside / "nothing.safetensors")
    (inside / "loop.safetensors").symlink_to("loop.safetensors")

    files = {file.name: file for file in scan([inside])}

    assert [name for name, file in files.items() if file.error is None] == ["alias", "real"]
    assert "leaves the model folders" in str(files["escape"].error)
    assert "leaves the model folders" in str(files["escape-folder"].error)
    assert files.keys() == {"real", "alias", "escape", "escape-folder", "dangling", "loop"}


def test_the_first_folder_wins_a_name(tmp_path: Path) -> None:
    first, second = copy_demo(tmp_path / "a", "m"), copy_demo(tmp_path / "b", "m")
    files = scan([tmp_path / "a", tmp_path / "b"])
    assert {file.path: file.error is None for file in files} == {first: True, second: False}
    assert str(first) in str(files[1].error)


def test_config_folders_and_the_insides_of_diffusers_folders_are_no_checkpoints(
    tmp_path: Path,
) -> None:
    copy_demo(tmp_path, "m")
    (tmp_path / "m.config" / "model_index.json").write_text("{}")
    (tmp_path / "pipe" / "unet").mkdir(parents=True)
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "pipe" / "unet" / "config.json").write_text("{}")
    (tmp_path / "pipe" / "unet" / "w.safetensors").touch()
    files = {file.name: file.error for file in scan([tmp_path])}
    assert files.keys() == {"m", "pipe"}
    assert files["m"] is None
    assert "FluxPipeline" in str(files["pipe"])


def test_a_diffusers_folder_may_not_link_out(tmp_path: Path) -> None:
    pipe = tmp_path / "models" / "pipe"
    pipe.mkdir(parents=True)
    (pipe / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (pipe / "unet").symlink_to(tmp_path)
    assert "leaves the model folders" in str(only(scan([tmp_path / "models"])).error)


def test_a_name_that_is_not_utf8_can_still_be_stored(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.safetensors"
    try:
        Path(os.fsdecode(path)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert only(scan([tmp_path])).name.encode() == "caf\ufffd".encode()


def test_missing_folders_hold_nothing(tmp_path: Path) -> None:
    assert scan([tmp_path / "nowhere"]) == []
