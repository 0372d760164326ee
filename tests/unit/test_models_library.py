"""Library: webui's folders as they are, scanned incrementally, found by what people write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from farm.errors import CheckpointError, LoraError
from farm.worker.models import catalogue
from farm.worker.models.catalogue import builtin_folder
from farm.worker.models.library import Library
from tests.small_files import small_file


def add_checkpoint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(builtin_folder() / "demo.safetensors", path)
    shutil.copytree(builtin_folder() / "demo.config", path.with_suffix(".config"))
    return path


def listed(library: Library) -> set[tuple[str, str]]:
    return {(file.kind, file.name) for file in library}


@pytest.mark.parametrize("inside", [".", "models"], ids=["model folder", "webui's own folder"])
def test_webuis_folders_say_the_kind(tmp_path: Path, inside: str) -> None:
    models = tmp_path / inside
    add_checkpoint(models / "Stable-diffusion" / "sub" / "m.safetensors")
    small_file(models / "Stable-diffusion" / "sub" / "m.vae.safetensors")
    small_file(models / "Lora" / "deep" / "Detail.safetensors", ss_output_name="x")
    small_file(models / "VAE" / "soft.safetensors")
    small_file(models / "VAE-approx" / "taesd.safetensors")
    small_file(tmp_path / "embeddings" / "bad-hands.safetensors")
    (tmp_path / "embeddings" / "old.pt").write_bytes(b"not read by a scan")
    (models / "ESRGAN").mkdir()
    (models / "ESRGAN" / "x4.pth").write_bytes(b"not read by a scan")
    small_file(models / "ControlNet" / "canny.safetensors")

    library = Library([tmp_path])

    assert listed(library) == {
        ("checkpoint", "sub/m"),
        ("vae", "m.vae"),
        ("lora", "Detail"),
        ("vae", "soft"),
        ("preview", "taesd"),
        ("embedding", "bad-hands"),
        ("embedding", "old.pt"),
        ("upscaler", "x4"),
        ("controlnet", "canny"),
    }
    assert [file.name for file in library if file.error] == []
    assert library.find("lora", "Detail").metadata == {"ss_output_name": "x"}


def test_in_webuis_own_folder_only_its_model_folders_count(tmp_path: Path) -> None:
    add_checkpoint(tmp_path / "models" / "Stable-diffusion" / "m.safetensors")
    small_file(tmp_path / "venv" / "lib" / "weights.safetensors")
    assert listed(Library([tmp_path])) == {("checkpoint", "m")}


def test_only_what_changed_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = catalogue.read_header

    def counted(path: Path) -> catalogue.Header:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(catalogue, "read_header", counted)
    for name in ("a", "b"):
        small_file(tmp_path / "Lora" / f"{name}.safetensors")
    library = Library([tmp_path])
    assert opened == ["a.safetensors", "b.safetensors"]

    version = library.version
    assert library.scan() is False
    assert library.version == version
    small_file(tmp_path / "Lora" / "b.safetensors", note="another")
    small_file(tmp_path / "Lora" / "c.safetensors")
    assert library.scan() is True
    (tmp_path / "Lora" / "a.safetensors").unlink()
    assert library.scan() is True

    assert library.version == version + 2
    assert opened[2:] == ["b.safetensors", "c.safetensors"]
    assert listed(library) == {("lora", "b"), ("lora", "c")}
    assert library.find("lora", "b").metadata == {"note": "another"}


def test_a_new_sidecar_counts_as_a_change(tmp_path: Path) -> None:
    path = add_checkpoint(tmp_path / "m.safetensors")
    library = Library([tmp_path])
    path.with_suffix(".json").write_text('{"steps": 4}')
    assert library.scan() is True
    assert library.find("checkpoint", "m").defaults["steps"] == 4


@pytest.mark.parametrize("written", ["sub/m", "sub/m.safetensors"])
def test_a_name_with_its_suffix_is_the_same_name(tmp_path: Path, written: str) -> None:
    add_checkpoint(tmp_path / "sub" / "m.safetensors")
    assert Library([tmp_path]).find("checkpoint", written).name == "sub/m"


def test_a_name_that_is_not_there_lists_near_ones(tmp_path: Path) -> None:
    small_file(tmp_path / "Lora" / "detail.safetensors")
    library = Library([tmp_path])
    with pytest.raises(LoraError, match="no LoRA 'detial'") as caught:
        library.find("lora", "detial")
    assert caught.value.title == "Unusable LoRA"
    assert (caught.value.field, caught.value.value) == ("lora", "detial")
    assert caught.value.remedy == "Did you mean detail?"
    with pytest.raises(CheckpointError, match="no vae 'detail'"):
        library.find("vae", "detail")


def test_a_broken_or_second_file_is_reported_and_hides_no_good_one(tmp_path: Path) -> None:
    small_file(tmp_path / "Lora" / "a.safetensors")
    small_file(tmp_path / "Lora" / "sub" / "a.safetensors")
    (tmp_path / "Lora" / "empty.safetensors").touch()
    library = Library([tmp_path])
    assert library.find("lora", "a").path == tmp_path / "Lora" / "a.safetensors"
    errors = {file.path.relative_to(tmp_path).as_posix(): file.error for file in library}
    assert "already the name" in str(errors["Lora/sub/a.safetensors"])
    assert "is empty" in str(errors["Lora/empty.safetensors"])
    with pytest.raises(CheckpointError, match="is empty"):
        library.find("lora", "empty")


def test_of_two_the_good_one_is_used_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "Lora" / "m.safetensors", tmp_path / "b" / "Lora"
    small_file(first)
    first.write_bytes(first.read_bytes()[:-1])
    good = small_file(second / "m.safetensors")
    library = Library([tmp_path / "a", tmp_path / "b"])
    assert library.find("lora", "m").path == good
    assert "cut short" in str(next(file.error for file in library if file.path == first))


def test_a_second_file_comes_into_its_right_when_the_first_is_gone(tmp_path: Path) -> None:
    first = small_file(tmp_path / "a" / "Lora" / "m.safetensors")
    second = small_file(tmp_path / "b" / "Lora" / "m.safetensors")
    library = Library([tmp_path / "a", tmp_path / "b"])
    assert library.find("lora", "m").path == first
    assert not library.scan()
    first.unlink()
    assert library.scan()
    assert library.find("lora", "m").path == second
    assert [file.error for file in library] == [None]
    small_file(first)
    assert library.scan()
    assert library.find("lora", "m").path == first


def test_a_link_into_another_model_folder_is_fine(tmp_path: Path) -> None:
    real = add_checkpoint(tmp_path / "nas" / "m.safetensors")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "m.safetensors").symlink_to(real)
    [linked] = Library([tmp_path / "local", tmp_path / "nas"])
    assert (linked.name, linked.error) == ("m", None)
    outside = next(iter(Library([tmp_path / "local"])))
    assert "leaves the model folders" in str(outside.error)


def without_vae(path: Path) -> Path:
    """The demo's index without its VAE, and no weights that anybody would read."""
    demo = builtin_folder() / "demo.safetensors"
    with demo.open("rb") as file:
        index = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kept = {name: entry for name, entry in index.items() if "first_stage" not in name}
    place = 0
    for name, entry in kept.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [place, place := place + end - begin]
    header = json.dumps(kept).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + place)
    return path


def test_a_checkpoint_without_a_vae_is_broken_until_one_is_put_beside_it(tmp_path: Path) -> None:
    path = without_vae(tmp_path / "Stable-diffusion" / "m.safetensors")
    library = Library([tmp_path])
    with pytest.raises(CheckpointError, match="holds no VAE"):
        library.find("checkpoint", "m")
    small_file(path.with_name("m.vae.safetensors"))
    library.scan()
    assert library.find("checkpoint", "m").error is None


def test_the_vae_it_names_must_be_there(tmp_path: Path) -> None:
    path = without_vae(tmp_path / "Stable-diffusion" / "m.safetensors")
    path.with_suffix(".json").write_text('{"vae": "soft"}')
    library = Library([tmp_path])
    with pytest.raises(CheckpointError, match="asks for the VAE 'soft'"):
        library.find("checkpoint", "m")
    soft = small_file(tmp_path / "VAE" / "soft.safetensors")
    library.scan()
    assert library.find("checkpoint", "m").error is None
    soft.unlink()
    assert library.scan() is True
    with pytest.raises(CheckpointError, match="asks for the VAE 'soft'"):
        library.find("checkpoint", "m")
