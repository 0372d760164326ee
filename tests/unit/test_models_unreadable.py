"""What cannot be read in a model folder: it is listed with the reason, keeps nobody waiting, and
harms no other file. Nothing of it is pretended, and root meets the same."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from farm.errors import CheckpointError, EmbeddingError
from farm.worker.models import catalogue
from farm.worker.models.architecture import read_config
from farm.worker.models.catalogue import builtin_folder, examine, scan
from farm.worker.models.embeddings import EmbeddingShelf, read_embedding
from farm.worker.models.hashes import hash_file
from farm.worker.models.header import read_header
from farm.worker.models.library import Library
from tests.nobody import as_nobody, open_folder
from tests.small_files import small_file

pytestmark = pytest.mark.timeout(30)  # to open a pipe would wait for ever

Make = Callable[[Path], object]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        near = Path("/proc/self/fd") / str(os.open(path.parent, os.O_PATH))
        listener.bind(str(near / path.name))
    os.close(int(near.name))


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone.safetensors")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES: list[tuple[Make, str]] = [
    (os.mkdir, "is a folder"),
    (os.mkfifo, "it is a folder, a pipe or a device"),
    (make_socket, "No such device or address"),
    (link_to_itself, "symbolic links"),
    (link_to_nothing, "does not exist|No such file"),
]
PLACES = [
    "Stable-diffusion/x.safetensors",
    "Stable-diffusion/x.vae.safetensors",
    "Lora/x.safetensors",
    "embeddings/x.pt",
    "ESRGAN/x.pth",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("make", "complaint"), NO_FILES)
def test_what_is_no_file_is_listed_with_the_reason(
    tmp_path: Path, make: Make, complaint: str, place: str
) -> None:
    good = small_file(tmp_path / "Lora" / "good.safetensors")
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    make(path)
    found = {file.path: file for file in scan([tmp_path])}
    assert found.pop(good).error is None
    if path.suffix != ".safetensors" and make is os.mkdir:
        assert not found, "a folder with any other name is just a folder"
        return
    [(listed, file)] = found.items()
    assert listed == path
    assert file.identity is None, "it would be hashed"
    with pytest.raises(CheckpointError, match=complaint):
        raise CheckpointError(str(file.error))


@pytest.mark.parametrize(("make", "_"), NO_FILES[:-1])
def test_what_is_no_file_is_not_waited_for_wherever_it_is_opened(
    tmp_path: Path, make: Make, _: str
) -> None:
    """It may have come after the folder was looked at."""
    path = tmp_path / "x.safetensors"
    make(path)
    for read in (read_header, read_config):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        hash_file(path, (0, 0, 0))
    assert examine(path, "lora").error
    path.rename(path.with_suffix(".pt"))
    if make is not link_to_itself:
        with pytest.raises(EmbeddingError, match="cannot be read"):
            read_embedding(path.with_suffix(".pt"))


@pytest.mark.parametrize(("make", "_"), NO_FILES)
@pytest.mark.parametrize("inside", ["model_index.json", "unet/config.json"])
def test_in_a_diffusers_folder_the_file_is_named(
    tmp_path: Path, make: Make, _: str, inside: str
) -> None:
    (tmp_path / "pipe" / "unet").mkdir(parents=True)
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "x"}')
    path = tmp_path / "pipe" / inside
    path.unlink(missing_ok=True)
    make(path)
    [file] = scan([tmp_path])
    assert file.name == "pipe"
    assert path.name in str(file.error)


@pytest.mark.parametrize(("make", "_"), NO_FILES)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_notes_that_are_no_file_are_no_notes(
    tmp_path: Path, make: Make, _: str, suffix: str
) -> None:
    path = tmp_path / "m.safetensors"
    shutil.copy(builtin_folder() / "demo.safetensors", path)
    make(path.with_suffix(suffix))
    assert [file.error for file in scan([tmp_path])] == [None]


def test_a_name_so_long_that_no_sidecar_can_have_it(tmp_path: Path) -> None:
    """255 bytes are a name; with ``.vae`` in it, it would be one too long."""
    path = tmp_path / f"{'y' * 243}.safetensors"
    shutil.copy(builtin_folder() / "demo.safetensors", path)
    short = small_file(tmp_path / "Lora" / f"{'z' * 243}.safetensors")
    with pytest.raises(OSError, match="too long"):
        path.with_suffix(".vae.safetensors").is_file()
    errors = {file.path: str(file.error) for file in scan([tmp_path])}
    assert errors.keys() == {path, short}
    assert all("more than 200 characters. Rename it." in error for error in errors.values())


@pytest.mark.parametrize("stem", [b"caf\xe9", b"two\nlines", b"\x1b[31mred"])
def test_a_name_that_nobody_could_store_or_print(tmp_path: Path, stem: bytes) -> None:
    folder = tmp_path / "embeddings"
    small_file(folder / "good.safetensors")
    strange = os.fsencode(folder) + b"/" + stem + b".pt"
    try:
        shutil.copy(folder / "good.safetensors", os.fsdecode(strange))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    files = {file.name: file for file in scan([tmp_path])}
    assert files.pop("good").error is None
    [(name, file)] = files.items()
    assert "�" in name
    assert "not plain UTF-8. Rename it." in str(file.error)
    for text in (name, str(file.error)):
        assert text.encode().decode().isprintable()
    # Prompts are read beside it as ever.
    shelf = EmbeddingShelf([file])
    assert shelf.spliced([320, 1125], (768,)) == [320, 1125]


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def test_a_file_without_read_permission_until_it_has_one(folder: Path) -> None:
    """The right to read leaves no mark on a file's size, time or number."""
    path = small_file(folder / "Lora" / "mine.safetensors")
    pickled = folder / "embeddings" / "mine.pt"
    pickled.parent.mkdir()
    torch.save({"emb_params": torch.ones(1, 8)}, pickled)
    small_file(folder / "Lora" / "good.safetensors")
    path.chmod(0)
    pickled.chmod(0)
    with as_nobody():
        library = Library([folder])
        errors = {file.path: file.error for file in library if file.error}
        assert errors.keys() == {path, pickled}
        assert "mine.safetensors cannot be read: permission denied" in str(errors[path])
        assert "the worker runs as" in str(errors[path])
        assert "mine.pt cannot be read: Permission denied" in str(errors[pickled])
        with pytest.raises(EmbeddingError, match="cannot be read"):
            read_embedding(pickled)
    path.chmod(0o444)
    pickled.chmod(0o444)
    with as_nobody():
        assert library.scan()
        assert [file.error for file in library] == [None] * 3
        assert not library.scan()


@pytest.mark.parametrize("shut", [".", "Lora", "Lora/private"])
def test_a_folder_that_cannot_be_looked_into_is_listed(folder: Path, shut: str) -> None:
    small_file(folder / "Lora" / "private" / "a.safetensors")
    small_file(folder / "VAE" / "b.safetensors")
    (folder / shut).chmod(0o000)
    try:
        with as_nobody():
            broken = [file for file in scan([folder]) if file.error]
    finally:
        (folder / shut).chmod(0o755)
    assert {file.path for file in broken} == {folder / shut}
    assert "cannot be read: Permission denied" in str(broken[0].error)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_goes_while_the_folder_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    small_file(tmp_path / "Lora" / "good.safetensors")
    path = small_file(tmp_path / place)
    size = catalogue._size

    def gone(folders: list[Path], each: Path) -> int:
        found = size(folders, each)
        if each == path:
            path.unlink()
        return found

    monkeypatch.setattr(catalogue, "_size", gone)
    library = Library([tmp_path])
    errors = {file.path: str(file.error) for file in library}
    assert errors.keys() == {path, tmp_path / "Lora" / "good.safetensors"}
    assert "does not exist" in errors[path] or "No such file" in errors[path]
    assert library.scan()
    assert [file.name for file in library] == ["good"]


def test_a_disk_that_fails_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_file(tmp_path / "Lora" / "a.safetensors")
    read = os.fdopen

    def failing(*_: object, **__: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdopen", failing)
    library = Library([tmp_path])
    assert "Input/output error" in str(next(iter(library)).error)
    monkeypatch.setattr(os, "fdopen", read)
    assert library.scan()
    assert next(iter(library)).error is None


def test_metadata_is_kept_within_bounds(tmp_path: Path) -> None:
    many = {f"key{number}": "v" for number in range(5000)}
    small_file(tmp_path / "Lora" / "a.safetensors", long="x" * 3000, fits="x" * 2000, **many)
    [file] = scan([tmp_path])
    assert len(file.metadata) == catalogue.MAX_PAIRS
    assert "long" not in file.metadata
    assert file.metadata["fits"] == "x" * 2000


@pytest.mark.parametrize(
    "notes",
    [
        {"width": -8},
        {"width": 100},
        {"steps": 10**400},
        {"steps": 0},
        {"cfg_scale": float("inf")},
        {"cfg_scale": float("nan")},
        {"sampler": "no such sampler"},
        {"sampler": "Euler\0"},
    ],
)
def test_defaults_that_no_job_may_have_are_reported(
    tmp_path: Path, notes: dict[str, object]
) -> None:
    path = tmp_path / "m.safetensors"
    shutil.copy(builtin_folder() / "demo.safetensors", path)
    path.with_suffix(".json").write_text(json.dumps(notes))
    [file] = scan([tmp_path])
    assert f"m.json gives what no job may have: {next(iter(notes))}" in str(file.error)
