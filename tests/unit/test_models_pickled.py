"""Pickles: nothing but tensors comes out of them, and no more than is allowed."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from farm.errors import CheckpointError
from farm.worker.models.pickled import read_pickled


def refused(path: Path, what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path.name} {what}.", remedy=remedy)


def test_what_is_deflated_counts_as_what_it_unpacks_to(tmp_path: Path) -> None:
    plain, small = tmp_path / "plain.pt", tmp_path / "small.pt"
    torch.save({"w": torch.zeros(100_000)}, plain)
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as to:
        for entry in before.infolist():
            to.writestr(entry.filename, before.read(entry))
    assert small.stat().st_size < 10_000
    for path in (plain, small):
        with pytest.raises(CheckpointError, match="unpacks to more than 0 MB"):
            read_pickled(path, max_bytes=300_000, refused=refused)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_out(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=not legacy)
    found = read_pickled(path, max_bytes=10**6, refused=refused)
    assert found["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("place", "value"), [(6, 99), (28, 60_000), (8, 1)])
def test_what_python_cannot_list_torch_is_not_shown(tmp_path: Path, place: int, value: int) -> None:
    """torch would unpack some of these, and nobody knows to how much."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(3)}, path)
    content = bytearray(path.read_bytes())
    entry = content.find(b"PK\x01\x02")  # in the central directory
    content[entry + place : entry + place + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        read_pickled(path, max_bytes=10**6, refused=refused)
