"""Memory profiles from YAML files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.worker.memory.custom import is_file, read_profile
from farm.worker.memory.profiles import GIB, by_name


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_what_is_left_out_is_the_bases(tmp_path: Path) -> None:
    found = read_profile(written(tmp_path, "base: 12gb\n"))
    assert found == replace(by_name("12gb"), name="mine")


def test_everything_can_be_set(tmp_path: Path) -> None:
    text = """
base: 24gb
dtype: bfloat16
vae_dtype: float32
memory_gb: 20
weights_gb: 9
rows_at_1024: 6
max_rows: 12
vae_tile_over: 1024
vae_tile: 256
vae: taesd
offload: streamed
attention: sub-quadratic
channels_last: false
fp16_accumulation: true
slots: 6
lookahead: 2
cuda_graphs: true
compile: regional
"""
    found = read_profile(written(tmp_path, text))
    assert (found.dtype, found.vae_dtype, found.offload) == ("bfloat16", "float32", "streamed")
    assert (found.memory_bytes, found.weights_bytes) == (20 * GIB, 9 * GIB)
    assert (found.rows_at_1024, found.max_rows, found.buckets) == (6, 12, (1, 2, 4, 8, 12))
    assert found.vae_tile_over == 1024**2
    assert (found.slots, found.lookahead) == (6, 2)
    assert (found.vae, found.vae_tile, found.attention) == ("taesd", 256, "sub-quadratic")
    assert (found.channels_last, found.fp16_accumulation) == (False, True)
    assert (found.cuda_graphs, found.compile) == (True, "regional")


def test_weights_keep_their_share_of_another_memory(tmp_path: Path) -> None:
    found = read_profile(written(tmp_path, "base: 24gb\nmemory_gb: 11.5"))
    assert found.weights_bytes == pytest.approx(by_name("24gb").weights_bytes / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("dtype: float16", "base", "Field required"),
        ("base: 25gb", "profile", "no memory profile '25gb'"),
        ("base: 24gb\ndtype: float8", "dtype", "float16"),
        ("base: 24gb\ncompile: everything", "compile", "regional"),
        ("base: 24gb\nrows: 4", "rows", "not permitted"),
        ("base: 24gb\nvae_tile: 500", "vae_tile", "multiple of 64"),
        ("base: 24gb\nattention: flash", "attention", "'sdpa', 'xformers'"),
        ("base: 24gb\noffload: cpu", "offload", "streamed"),
        ("base: 24gb\nslots: 0", "slots", "greater than or equal to 1"),
        ("base: 24gb\nmemory_gb: 8\nweights_gb: 9", "weights_gb", "leaves nothing"),
        ("- a\n- b", "the file", "valid dictionary"),
        ("base: [", "FARM_PROFILE", "is not YAML"),
        ("!!python/object:os.system {}", "FARM_PROFILE", "is not YAML"),
        ("x" * 70_000, "FARM_PROFILE", "too large"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_profile(written(tmp_path, text))
    assert caught.value.field == field
    assert says in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_profile(tmp_path / "none.yaml")


@pytest.mark.parametrize(("name", "file"), [("24gb", False), ("auto", False), ("/x/a.yaml", True)])
def test_names_and_files(name: str, file: bool) -> None:
    assert is_file(name) == file
