"""read_header: what is in a safetensors file, and why a file is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from farm.errors import CheckpointError
from farm.worker.models.header import read_header
from tests.nobody import as_nobody, open_folder

ONE = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(path: Path, index: Any, data: bytes = bytes(24)) -> Path:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_entries_carry_dtype_shape_and_place_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**ONE, "__metadata__": {"who": "me"}})

    header = read_header(path)

    entry = header.tensors["w"]
    assert (entry.dtype, entry.shape) == ("F32", (2, 3))
    assert (entry.start, entry.end) == (header.bytes - 24, header.bytes)
    assert header.metadata == {"who": "me"}
    assert header.identity == (header.bytes, path.stat().st_mtime_ns, path.stat().st_ino)


def test_nobody_can_change_it(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.safetensors", ONE))
    with pytest.raises(TypeError):
        header.tensors["other"] = header.tensors["w"]  # type: ignore[index]


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**ONE["w"], **changes}}


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (b"not json at all", "index is not JSON"),
        (b"\xff\xfe" * 20, "index is not JSON"),
        (b"[" * 50_000, "index is not JSON"),
        (b"[1, 2, 3]", "index is not a table"),
        ({}, "holds no tensors"),
        ({"__metadata__": {"a": "b"}}, "holds no tensors"),
        ({**ONE, "__metadata__": "text"}, "metadata that is not a table"),
        ({"w": 7}, "broken index at 'w'"),
        ({"w": {"dtype": "F32"}}, "broken index at 'w'"),
        (entry(shape=["two"]), "broken index at 'w'"),
        (entry(shape=[-2, -3]), "broken index at 'w'"),
        (entry(data_offsets=[0]), "broken index at 'w'"),
        (entry(data_offsets=[-24, 0]), "broken index at 'w'"),
        (entry(data_offsets=[0, 20]), "broken index at 'w'"),
        (entry(dtype="Q4_K"), "stores 'w' as Q4_K"),
        (entry(shape=[20, 30], data_offsets=[0, 2400]), "is cut short"),
        (entry(shape="23"), "broken index at 'w'"),
        (entry(shape=[2.0, 3]), "broken index at 'w'"),
        (entry(shape=[True, 6]), "broken index at 'w'"),
        (entry(dtype=["F32"]), "stores 'w' as"),
        (entry(data_offsets=["0", "24"]), "broken index at 'w'"),
        (entry(data_offsets=[0.5, 24.5]), "broken index at 'w'"),
        (entry(data_offsets={}), "broken index at 'w'"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, index: Any, complaint: str) -> None:
    path = write(tmp_path / "bad.safetensors", index)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert complaint in caught.value.message
    assert "bad.safetensors" in caught.value.message
    assert caught.value.value == str(path)
    assert caught.value.remedy


def halves(*places: tuple[int, int]) -> dict[str, Any]:
    """Tensors a, b and so on of two bytes a number, at these places."""
    return {
        name: {"dtype": "F16", "shape": [(end - begin) // 2], "data_offsets": [begin, end]}
        for name, (begin, end) in zip("abc", places, strict=False)
    }


@pytest.mark.parametrize(
    ("places", "complaint"),
    [
        ([(0, 16), (8, 24)], "'b' overlaps the tensor before it"),
        ([(0, 24), (0, 24)], "'b' overlaps the tensor before it"),
        ([(8, 24), (0, 10)], "'a' overlaps the tensor before it"),
        ([(0, 24), (4, 8)], "'b' overlaps the tensor before it"),
        ([(0, 8), (10, 24)], "'b' comes after a hole"),
        ([(2, 24)], "'a' comes after a hole"),
        ([(0, 8), (8, 20)], "has 4 bytes behind its last tensor"),
    ],
)
def test_tensors_must_fill_the_file(
    tmp_path: Path, places: list[tuple[int, int]], complaint: str
) -> None:
    path = write(tmp_path / "bad.safetensors", halves(*places))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_header(path)
    assert caught.value.remedy


@pytest.mark.parametrize("places", [[(12, 24), (0, 12)], [(0, 24), (24, 24)], [(0, 0), (0, 24)]])
def test_order_and_empty_tensors_do_not_matter(
    tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    assert read_header(write(tmp_path / "good.safetensors", halves(*places))).tensors


def test_no_permission_is_said() -> None:
    with open_folder() as folder:
        path = write(folder / "a.safetensors", ONE)
        path.chmod(0)
        with (
            as_nobody(),
            pytest.raises(CheckpointError, match="cannot be read: permission denied") as caught,
        ):
            read_header(path)
        path.chmod(0o444)
        with as_nobody():
            assert read_header(path).tensors
    assert "the worker runs as" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"abc", "is not a safetensors file"),
        (b"<!DOCTYPE html><html>sign in first</html>", "is not a safetensors file"),
        (struct.pack("<Q", 2**63) + bytes(100), "is not a safetensors file"),
        (struct.pack("<Q", 2**32) + bytes(100), "its index would be 4294967296 bytes long"),
        (struct.pack("<Q", 1) + bytes(100), "is not a safetensors file"),
        (struct.pack("<Q", 5_000) + b"{", "is cut short"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_header(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read: does not exist"):
        read_header(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "folder.safetensors")


def test_a_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "short.safetensors", ONE, data=bytes(23))
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match=f"cut short: {size} of {size + 1} bytes"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    # It does not even exist: the name is enough.
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / f"model{suffix}")
    assert "can run code" in caught.value.message
    assert ".safetensors" in str(caught.value.remedy)
