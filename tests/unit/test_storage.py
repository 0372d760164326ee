"""The image store, on a disk and on a filesystem that is not one."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from farm.errors import InvalidInput, NotFound, SetupError, Unavailable
from farm.spec.output import MIMES, suffix_of
from farm.storage import ImageStore, attempt_of, image_path


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    where = tmp_path / "a folder" / "images"
    return ImageStore(str(where) if request.param == "folder" else f"memory:/{where}")


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ((12, 3, 1), "batches/000012/000003-1.png"),
        ((12, 3, 2), "batches/000012/000003-2.png"),
        ((1234567, 7654321, 10, ".thumb.webp"), "batches/1234567/7654321-10.thumb.webp"),
    ],
)
def test_names_are_unique_to_the_attempt(place: tuple[int, int, int], path: str) -> None:
    assert image_path(*place) == path


@pytest.mark.parametrize("suffix", [*map(suffix_of, MIMES), ".thumb.webp"])
def test_whose_a_file_is_can_be_told_from_its_name(suffix: str) -> None:
    assert attempt_of(image_path(12, 3, 2, suffix)) == (3, 2)


def test_what_is_put_can_be_had(store: ImageStore) -> None:
    store.put("batches/1/a.png", b"one")
    store.put("batches/2/a.png", b"other")
    store.put("batches/1/a.png", b"newer")

    assert store.get("batches/1/a.png") == b"newer"
    with store.open("batches/1/a.png") as file:
        assert file.read(3) == b"new"
    assert store.size("batches/2/a.png") == 5
    assert list(store.paths()) == ["batches/1/a.png", "batches/2/a.png"]
    assert list(store.paths("batches/2")) == ["batches/2/a.png"]
    assert list(store.paths("batches/3")) == []


def test_what_is_deleted_is_gone_and_deleting_twice_is_fine(store: ImageStore) -> None:
    store.put("a.png", b"one")
    store.delete("a.png")
    store.delete("a.png")
    assert list(store.paths()) == []


@pytest.mark.parametrize("action", ["get", "open", "size"])
def test_what_is_not_there_is_named(store: ImageStore, action: str) -> None:
    with pytest.raises(NotFound, match=r"There is no stored file a/b\.png"):
        getattr(store, action)("a/b.png")


@given(st.text(alphabet=st.sampled_from("ab./\\~$:%\x00é -_")))
@example("../secret")
@example("a/../../secret")
@example("/etc/passwd")
@example("file:///etc/passwd")
@example("a//b")
@example("a/./b")
@example(".partial/x")
@example("a\n")
@example("")
def test_no_path_leaves_the_store(path: str) -> None:
    root = Path("/the/root")
    store = ImageStore(str(root))
    with contextlib.suppress(InvalidInput):
        whole = store._inside(path)
        assert os.path.normpath(whole) == whole == f"{root}/{path}"
        assert Path(whole).is_relative_to(root)


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "", "a//b", ".partial/a", "a\n", "a\0"])
@pytest.mark.parametrize("action", ["get", "open", "size", "delete"])
def test_a_path_out_of_the_store_is_refused(store: ImageStore, path: str, action: str) -> None:
    with pytest.raises(InvalidInput, match="is not a path in the image store") as error:
        getattr(store, action)(path)
    assert (error.value.field, error.value.value) == ("path", path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_disk_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    store = ImageStore(str(tmp_path))
    store.put("batches/1/a.png", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match=says) as error:
        store.put("batches/1/a.png", b"new")

    assert error.value.remedy
    assert store.get("batches/1/a.png") == b"old"
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    with pytest.raises(Unavailable, match="Not a directory") as error:
        ImageStore(str(tmp_path / "images")).put("a.png", b"x")
    assert error.value.value == str(tmp_path / "images")


def test_what_dead_writers_left_is_hidden_and_removable(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    store.put("a.png", b"x")
    stale, fresh = tmp_path / ".partial" / "stale", tmp_path / ".partial" / "fresh"
    stale.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200,) * 2)
    (tmp_path / ".partial" / "finished just now").symlink_to("nowhere")

    assert list(store.paths()) == ["a.png"]
    assert store.remove_partial(older_than=3600) == 1
    assert not stale.exists()
    assert fresh.exists()


def test_a_service_that_fails_is_unavailable(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(Exception):
        """Not an OSError, as botocore's are not."""

    def fail(*_: object, **__: object) -> None:
        raise Lost("no route to the bucket")

    monkeypatch.setattr(store._files, "cat_file", fail)
    with pytest.raises(Unavailable, match="no route to the bucket"):
        store.get("a.png")


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s4://bucket"])
def test_an_unknown_place_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="Images cannot be stored at") as error:
        ImageStore(url)
    assert error.value.field == "FARM_STORAGE_URL"
    assert error.value.value == url


def test_a_file_that_goes_while_its_folder_is_listed_is_passed_over(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    for name in ("a.png", "b.png"):
        store.put(f"traces/{name}", b"x")
    listing = store.listing("traces")
    first, _ = next(listing)
    for file in (tmp_path / "traces").iterdir():
        file.unlink()
    assert list(listing) == [], first


def test_a_bucket_that_is_not_there_refuses_as_a_full_disk_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ImageStore("memory://bucket")

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(store._files, "pipe_file", fail)
    for write in (lambda: store.put("a.png", b"x"), lambda: store.probe(1)):
        with pytest.raises(Unavailable, match="bucket does not exist"):
            write()
